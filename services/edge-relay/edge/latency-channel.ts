import { randomBytes } from "node:crypto";
import type { WebSocket } from "ws";

/** Pings on a channel at most. */
export const maxPings = 40;
const spacingMs = 30;
const maxDurationMs = 2_000;

/**
 * Pings a browser over its WebSocket, several in flight, and answers the round trips in microseconds in the order of
 * the answers; `roundTrips` holds them as they come. Each ping has a payload of its own: an answer that was not asked for, or comes twice, is passed over.
 * Ends when all are answered, when the socket closes, or after 2 s.
 */
export function measureRoundTrips(socket: WebSocket, count: number, roundTrips: number[] = []): Promise<number[]> {
  const wanted = Math.min(maxPings, Math.max(0, count));
  const open = new Map<string, bigint>();
  return new Promise((resolve) => {
    let sent = 0;
    const finish = (): void => {
      clearInterval(sending);
      clearTimeout(deadline);
      socket.off("pong", answered);
      socket.off("close", finish);
      resolve(roundTrips);
    };
    const send = (): void => {
      if (sent >= wanted || socket.readyState !== socket.OPEN) {
        clearInterval(sending);
        if (open.size === 0) finish();
        return;
      }
      sent += 1;
      const payload = randomBytes(12);
      open.set(payload.toString("hex"), process.hrtime.bigint());
      socket.ping(payload);
    };
    const answered = (payload: Buffer): void => {
      const at = process.hrtime.bigint();
      const key = payload.length === 12 ? payload.toString("hex") : "";
      const began = open.get(key);
      if (began === undefined) return;
      open.delete(key);
      roundTrips.push(Number((at - began) / 1000n));
      if (sent >= wanted && open.size === 0) finish();
    };
    const sending = setInterval(send, spacingMs);
    const deadline = setTimeout(finish, maxDurationMs);
    socket.on("pong", answered);
    socket.on("close", finish);
    send();
  });
}

import { onAbort } from "./budget.ts";

/** What came of a latency channel. */
export interface ChannelResult {
  /** The edge's id of the channel; undefined where there was no hello. */
  readonly channel: string | undefined;
  /** Pings that the browser answered, as the server counted; 0 where the server did not get to its end. */
  readonly pings: number;
  /** The server's signed measurement in base64url, if it gave one. */
  readonly measurement: string | undefined;
  /** Whether the server said that it is done. */
  readonly isDone: boolean;
}

/** A message of the server; undefined for what is none. */
export type ServerMessage =
  | { readonly t: "hello"; readonly channel: string; readonly landmarks: readonly unknown[] }
  | { readonly t: "done"; readonly pings: number; readonly measurement: string | undefined };

const maxMessageLength = 16_384;
const maxPings = 40;
const channelPattern = /^[A-Za-z0-9_-]{1,64}$/;
// A SignedMeasurement has some 4,240 bytes at most.
const measurementPattern = /^[A-Za-z0-9_-]{1,5700}$/;

/**
 * Opens a latency channel and has the server ping the browser `pings` times. The browser answers by itself, below the
 * page: a busy page does not distort it. `greeted` is told the landmarks that the server names. Never rejects: where the
 * socket fails, or the signal fires, the result holds what was learned until then. The socket is closed afterwards.
 */
export function measureChannel(options: {
  url: string;
  digest: string;
  pings: number;
  signal: AbortSignal;
  greeted?: (landmarks: readonly unknown[]) => void;
}): Promise<ChannelResult> {
  return new Promise((resolve) => {
    let channel: string | undefined;
    let socket: WebSocket | undefined;
    let release = (): void => undefined;
    const finish = (done?: ServerMessage & { t: "done" }): void => {
      release();
      if (socket !== undefined) {
        socket.onmessage = null;
        socket.onclose = null;
        socket.onerror = null;
        socket.close();
      }
      const { pings = 0, measurement } = done ?? {};
      resolve({ channel, pings, measurement, isDone: done !== undefined });
    };
    if (options.signal.aborted) return finish();
    try {
      socket = new WebSocket(withDigest(options.url, options.digest));
    } catch {
      // The page's policy, or mixed content: like a server that is out of reach.
      return finish();
    }
    const opened = socket;
    release = onAbort(options.signal, finish);
    opened.onclose = () => finish();
    // Chromium closes no socket that the page's policy forbids: it only tells of an error.
    opened.onerror = () => finish();
    opened.onmessage = ({ data }) => {
      const message = readServerMessage(data);
      if (message === undefined) finish();
      else if (message.t === "done") finish(message);
      else if (channel === undefined) {
        channel = message.channel;
        opened.send(JSON.stringify({ t: "start", pings: options.pings }));
        options.greeted?.(message.landmarks);
      }
    };
  });
}

/** Reads a message of the server; undefined for what is too long, is no message, or has parts that are not as agreed. */
export function readServerMessage(data: unknown): ServerMessage | undefined {
  if (typeof data !== "string" || data.length > maxMessageLength) return undefined;
  let parsed: unknown;
  try {
    parsed = JSON.parse(data);
  } catch {
    return undefined;
  }
  if (typeof parsed !== "object" || parsed === null) return undefined;
  const { t, channel, landmarks = [], pings, m } = parsed as Record<string, unknown>;
  if (t === "hello") {
    if (typeof channel !== "string" || !channelPattern.test(channel) || !Array.isArray(landmarks)) return undefined;
    return { t, channel, landmarks };
  }
  if (t !== "done" || typeof pings !== "number" || !Number.isInteger(pings) || pings < 0 || pings > maxPings) {
    return undefined;
  }
  return { t, pings, measurement: typeof m === "string" && measurementPattern.test(m) ? m : undefined };
}

function withDigest(url: string, digest: string): string {
  const parsed = new URL(url);
  parsed.searchParams.set("d", digest);
  return parsed.href;
}

import { randomBytes as systemRandom } from "node:crypto";
import type { Logger } from "pino";
import { parseEchoReply, writeEchoRequest } from "./icmp-packet.ts";
import { type IcmpSocket, openIcmpSocket } from "./icmp-socket.ts";
import { errorNumbers, type LibcResult, openLibc } from "./libc.ts";
import { hostBytesOf, type SocketAddress, socketAddressFrom } from "./socket-address.ts";

/** How a machine is pinged. */
export interface PingOptions {
  /** Echo requests to send; 16 at most. */
  readonly count: number;
  /** How long to wait from the first request, milliseconds; 10,000 at most. */
  readonly timeoutMs: number;
  /** Ends the wait; then what was measured until there counts. */
  readonly signal?: AbortSignal;
}

/** Pings machines by ICMP. */
export interface IcmpEcho {
  /**
   * The least round trip of an echo to an address, IPv4 or IPv6, in whole microseconds and at least one; undefined
   * where nothing answered in time, where there is no ICMP (see `available`), where the address is no single
   * machine's, and where 256 addresses are being pinged already. An address is pinged once at a time: who asks
   * meanwhile gets the same answer. Never rejects.
   */
  ping(address: string, options: PingOptions): Promise<number | undefined>;
  /** Whether ICMP can be sent over IPv4, at least. The reason against is logged once. */
  readonly available: boolean;
  /** Ends all pings, which have then measured what they have. Idempotent. */
  close(): void;
}

/** What pings are made of. Randomness and the C library are the process's own by default. */
export interface IcmpEchoOptions {
  readonly log: Logger;
  readonly randomBytes?: (length: number) => Buffer;
  readonly libc?: LibcResult;
}

const maxTargets = 256;
const maxCount = 16;
const maxTimeoutMs = 10_000;
/** Between one request to an address and the next. */
const spacingMs = 20;
/** Between looks at the socket while something is under way; the kernel's times make it no matter for the result. */
const pollMs = 5;
/** Packets that one look takes at most, so that a flood of them stops nothing else. */
const maxPacketsPerPoll = 512;
const payloadLength = 32;

/**
 * Opens ICMP echo by one raw socket for each of IPv4 and IPv6, which needs CAP_NET_RAW. A reply counts if it comes
 * from the address asked, and repeats the request's id, sequence number and random payload: it can be delayed, but
 * not made up by who has not seen the request.
 *
 * Source: RFC 792, RFC 4443.
 */
export function createIcmpEcho(options: IcmpEchoOptions): IcmpEcho {
  const { log, randomBytes = systemRandom } = options;
  const sockets = openSockets(options.libc ?? openLibc(), log);
  /** By the bytes of the address, which tell IPv4 and IPv6 apart by their number. */
  const runs = new Map<string, Run>();
  let timer: NodeJS.Timeout | undefined;
  let closed = false;

  const look = (): void => {
    for (const version of [4, 6] as const) {
      const socket = sockets[version];
      if (socket !== undefined) receiveAll(socket, version, runs);
    }
    for (const run of runs.values()) {
      const socket = sockets[run.target.version];
      if (socket !== undefined) run.advance(socket);
    }
    if (runs.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };

  return {
    available: sockets[4] !== undefined,
    async ping(address, { count, timeoutMs, signal }) {
      const target = socketAddressFrom(address);
      if (closed || target === undefined || sockets[target.version] === undefined || signal?.aborted === true) {
        return undefined;
      }
      const key = hostBytesOf(target.version, target.bytes)?.toString("hex") ?? "";
      let run = runs.get(key);
      if (run === undefined) {
        if (runs.size >= maxTargets) return undefined;
        run = createRun(target, {
          count: bounded(count, maxCount),
          timeoutMs: bounded(timeoutMs, maxTimeoutMs),
          randomBytes,
          ended: () => runs.delete(key),
        });
        runs.set(key, run);
        timer ??= setInterval(look, pollMs);
        run.advance(sockets[target.version]!);
      }
      return run.join(signal);
    },
    close() {
      if (closed) return;
      closed = true;
      clearInterval(timer);
      for (const run of runs.values()) run.end();
      sockets[4]?.close();
      sockets[6]?.close();
    },
  };
}

function bounded(value: number, max: number): number {
  return value > 0 ? Math.min(value, max) : 0;
}

function openSockets(opened: LibcResult, log: Logger): { 4?: IcmpSocket; 6?: IcmpSocket } {
  const { libc } = opened;
  if (libc === undefined) {
    log.warn({ problem: opened.problem }, "addresses are not pinged");
    return {};
  }
  const sockets: { 4?: IcmpSocket; 6?: IcmpSocket } = {};
  for (const version of [4, 6] as const) {
    const socket = openIcmpSocket(libc, version);
    if (!("errno" in socket)) sockets[version] = socket;
    else if (version === 4 || sockets[4] !== undefined) {
      const refused = socket.errno === errorNumbers.EPERM || socket.errno === errorNumbers.EACCES;
      const problem = refused ? "the process has no CAP_NET_RAW" : `the kernel refused with error ${socket.errno}`;
      if (version === 4) log.warn({ problem }, "addresses are not pinged");
      else log.info({ problem }, "IPv6 addresses are not pinged");
    }
  }
  return sockets;
}

/** Pings of one address. */
interface Run {
  readonly target: SocketAddress;
  /** Sends the next request if it is time, and ends the run if it is over. */
  advance(socket: IcmpSocket): void;
  /** Takes a reply; one that answers no request of this run is ignored. */
  answer(reply: { id: number; sequence: number; payload: Buffer }, timeNs: bigint): void;
  end(): void;
  /** The result. Who stops waiting gets what there is. */
  join(signal: AbortSignal | undefined): Promise<number | undefined>;
}

interface RunOptions {
  readonly count: number;
  readonly timeoutMs: number;
  readonly randomBytes: (length: number) => Buffer;
  readonly ended: () => void;
}

function createRun(target: SocketAddress, { count, timeoutMs, randomBytes, ended }: RunOptions): Run {
  const id = randomBytes(2).readUInt16BE(0);
  const startedAt = performance.now();
  const waiting = new Map<number, { payload: Buffer; sentNs: bigint; sentAt: number }>();
  let sent = 0;
  let bestUs: number | undefined;
  let waiters = 0;
  let isOver = false;
  const { promise: over, resolve } = withResolvers<void>();
  const end = (): void => {
    if (isOver) return;
    isOver = true;
    ended();
    resolve();
  };
  return {
    target,
    advance(socket) {
      const elapsedMs = performance.now() - startedAt;
      if (elapsedMs >= timeoutMs || (sent >= count && waiting.size === 0)) {
        end();
        return;
      }
      if (sent >= count || elapsedMs < sent * spacingMs) return;
      const payload = randomBytes(payloadLength);
      const message = writeEchoRequest(target.version, id, sent, payload);
      const request = { payload, sentNs: socket.nowNs(), sentAt: performance.now() };
      if (socket.send(message, target)) waiting.set(sent, request);
      sent += 1;
    },
    answer(reply, timeNs) {
      const request = waiting.get(reply.sequence);
      if (request === undefined || reply.id !== id || !reply.payload.equals(request.payload)) return;
      waiting.delete(reply.sequence);
      const rttUs = roundTripUs(Number(timeNs - request.sentNs) / 1_000, (performance.now() - request.sentAt) * 1_000);
      bestUs = Math.min(bestUs ?? rttUs, rttUs);
    },
    end,
    async join(signal) {
      waiters += 1;
      const { promise: aborted, resolve: abort } = withResolvers<void>();
      const onAbort = (): void => abort();
      signal?.addEventListener("abort", onAbort, { once: true });
      await Promise.race([over, aborted]);
      signal?.removeEventListener("abort", onAbort);
      waiters -= 1;
      if (waiters === 0) end();
      return bestUs;
    },
  };
}

/**
 * The kernel's measure of a round trip, which our own bounds from above; ours where the kernel's clock was set in
 * between.
 */
function roundTripUs(kernelUs: number, ownUs: number): number {
  return Math.max(1, Math.round(kernelUs > 0 && kernelUs <= ownUs ? kernelUs : ownUs));
}

function receiveAll(socket: IcmpSocket, version: 4 | 6, runs: ReadonlyMap<string, Run>): void {
  for (let i = 0; i < maxPacketsPerPoll; i += 1) {
    const received = socket.receive();
    if (received === undefined) return;
    const reply = parseEchoReply(version, received.packet);
    if (reply === undefined) continue;
    runs.get(received.from.toString("hex"))?.answer(reply, received.timeNs);
  }
}

function withResolvers<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve: (value: T) => void = () => undefined;
  const promise = new Promise<T>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}

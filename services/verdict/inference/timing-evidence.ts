import type { ConnectionTiming, LatencyChannel } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import { ConnectionTiming_Degradation as Degradation } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import { interpolate } from "./hypotheses.ts";

/** Whether the timing is of the browser's own connection. */
export function isTimed(connection: ConnectionTiming | undefined): connection is ConnectionTiming {
  return connection?.degradation === Degradation.UNSPECIFIED && connection.minRttUs > 0n;
}

/** Least pings for a gap to count at all, and for it to count in full. */
const leastPings = 3;
const enoughPings = 10;

/** What the answered pings of a channel say. */
export interface Gap {
  readonly ms: number;
  readonly pings: number;
}

/**
 * The cross-layer gap of a latency channel: least WebSocket round trip less the kernel's least round trip of the same
 * connection (Ramesh et al., CalcuLatency, USENIX Security 2024). Both are least values of the same packets, so that what
 * delays packets is in neither, and what is left is the browser's own delay and a proxy's leg. Undefined where either
 * layer was not timed.
 */
export function gapOf(channel: LatencyChannel | undefined): Gap | undefined {
  if (channel === undefined || !isTimed(channel.connection)) return undefined;
  const trips = channel.roundTripUs.map((us) => Number(us) / 1000).filter((ms) => ms > 0);
  if (trips.length < leastPings) return undefined;
  return { ms: Math.max(0, Math.min(...trips) - Number(channel.connection.minRttUs) / 1000), pings: trips.length };
}

/**
 * Bits of a gap for a proxy that ends TCP, by milliseconds; README.md, "Cross-layer gap", says where each comes from. It
 * never reaches a high alarm alone.
 */
const gapTable = [
  [2.6, -4],
  [5, 6.6],
  [15, 7.2],
  [25, 7.4],
  [50, 7.8],
] as const;

/** Bits of a gap for a proxy that ends TCP. Rises with the gap; of few pings it is no alarm by itself. */
export function gapBits({ ms, pings }: Gap): number {
  const bits = interpolate(gapTable, ms);
  return pings < enoughPings ? Math.min(4, bits) : bits;
}

/**
 * Whether a connection's first TLS bytes came later than from a browser that opened it itself: 0.5-1.8 ms direct and 3-13
 * through NAT, against the proxy's leg (61-74 ms at 60). A TLS handshake that took one round trip after all denies it.
 */
export function isHelloLate(connection: ConnectionTiming): boolean {
  const handshakeUs = Number(connection.tlsHandshakeUs);
  const isDenied = handshakeUs > 0 && handshakeUs - Number(connection.minRttUs) < 5_000;
  return Number(connection.helloDelayUs) >= 10_000 && !isDenied;
}

/**
 * Bits of a segment size for a tunnel: WireGuard announces 1380 and OpenVPN 1359 as measured; both overlap mobile networks
 * (1358-1410). PPPoE's 1452 is no tunnel.
 */
export function segmentBits(connection: ConnectionTiming): number {
  const announced = connection.syn?.mss ?? 0;
  // Time stamps take 12 bytes of each segment.
  const size = announced > 0 ? announced : connection.mss > 0 ? connection.mss + 12 : 0;
  if (Math.abs(size - 1359) <= 1 || size === 1380) return 3;
  return size >= 1200 && size < 1420 ? 1.5 : 0;
}

const echoTable = [
  [5, 0],
  [15, 6],
  [50, 6.4],
] as const;

/**
 * Bits, for a tunnel, of an address that answers ICMP sooner than the connection's far end does: an exit that tunnels on.
 * A mobile carrier's gateway answers for its subscribers without the radio leg, so that the same counts for little there.
 */
export function echoBits(connection: ConnectionTiming, icmpRttUs: bigint, isMobile: boolean): number {
  if (icmpRttUs <= 0n) return 0;
  const bits = interpolate(echoTable, (Number(connection.minRttUs) - Number(icmpRttUs)) / 1000);
  return isMobile ? Math.min(2.6, bits) : bits;
}

/** Whether a SYN's initial TTL is that of Windows, 128. */
export function isWindows(connection: ConnectionTiming): boolean {
  const ttl = connection.syn?.ttl ?? 0;
  return ttl > 64 && ttl <= 128;
}

/**
 * Whether a SYN's initial TTL is not of the system that the User-Agent names: 128 on Windows, 64 elsewhere. False where
 * either is not known.
 */
export function isOtherSystem(connection: ConnectionTiming, userAgent: string): boolean {
  const ttl = connection.syn?.ttl ?? 0;
  const claimsWindows = /Windows NT/.test(userAgent);
  if (ttl <= 0 || !(claimsWindows || /Mac OS X|Android|Linux|CrOS/.test(userAgent))) return false;
  return claimsWindows !== isWindows(connection);
}

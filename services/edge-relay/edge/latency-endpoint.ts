import { createHash, randomBytes } from "node:crypto";
import type { Duplex } from "node:stream";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { HttpRequest } from "@octomesh/mesh/service";
import type { ConnectionTimingSchema, LatencyChannelSchema } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import {
  LandmarkMeasurementSchema,
  SignedMeasurementSchema,
} from "@octomesh/proto/octomesh/edge/v1/landmark_measurement_pb";
import type { Logger } from "pino";
import { type WebSocket, WebSocketServer } from "ws";
import type { IcmpEcho } from "../signals/icmp-echo.ts";
import type { AddressLimits } from "./address-limits.ts";
import { createChannelStore } from "./channel-store.ts";
import type { ClientEnd } from "./client-end.ts";
import type { Place } from "./edge-config.ts";
import { maxPings, measureRoundTrips } from "./latency-channel.ts";
import type { OriginRule } from "./origin-rule.ts";
import { parseFlatJson } from "./report-head.ts";
import type { Signer } from "./sign-bundle.ts";

/** What a channel measured. */
export interface ChannelResult {
  readonly channel: MessageInitShape<typeof LatencyChannelSchema>;
  /** Least round trip of an ICMP echo, microseconds; undefined where there was none. */
  readonly icmpUs: number | undefined;
}

/** A result, and the digest of the session that it is for; undefined where the channel named none. */
type JoinableResult = ChannelResult & { readonly digest: string | undefined };

/** The WebSocket on which browsers are pinged. */
export interface LatencyEndpoint {
  /** Takes over a connection that asks for the path of the channel, or refuses it as HTTP does. */
  upgrade(request: HttpRequest, socket: Duplex, head: Buffer): void;
  /**
   * What the channel of a report measured, until now if it measures still; once, and for the session that it was opened
   * for alone. A channel that was opened for none is good for any.
   */
  take(channel: string, sessionRef: string): ChannelResult | undefined;
  /** Channels that are open. */
  readonly open: number;
  /** Takes no more channels, and says good-bye on those that are open. */
  close(): void;
}

/** What the endpoint is made of. */
export interface LatencyEndpointOptions {
  readonly role: "edge" | "landmark";
  readonly name: string;
  readonly location: Place | undefined;
  readonly landmarks: readonly string[];
  readonly origins: OriginRule;
  readonly limits: AddressLimits;
  /** The path of a request without the edge's prefix. */
  pathOf(request: HttpRequest): string;
  endOf(request: HttpRequest): ClientEnd;
  /** The address that signals carry of a client. */
  reportedOf(end: ClientEnd): string;
  timingOf(request: HttpRequest, behindProxy: boolean): MessageInitShape<typeof ConnectionTimingSchema>;
  /** Who signs measurements now; undefined: nobody. */
  signer(): Signer | undefined;
  readonly icmp: IcmpEcho | undefined;
  readonly log: Logger;
}

const maxChannels = 5_000;
const channelTimeoutMs = 15_000;
const maxMessageBytes = 4 * 1024;
const icmpPings = { count: 4, timeoutMs: 1_000 };
const digestPattern = /^[A-Za-z0-9_-]{43}$/;

/** Opens the endpoint. */
export function createLatencyEndpoint(options: LatencyEndpointOptions): LatencyEndpoint {
  const { log, role, limits } = options;
  const results = createChannelStore<JoinableResult>(Date.now);
  /** Channels that measure still, by their id. */
  const running = new Map<string, () => JoinableResult>();
  const sockets = new WebSocketServer({ noServer: true, maxPayload: maxMessageBytes, perMessageDeflate: false });
  let closing = false;

  const signMeasurement = (digest: string, channel: ChannelResult["channel"]): string | undefined => {
    const signer = options.signer();
    if (signer === undefined) return undefined;
    const measurement = toBinary(
      LandmarkMeasurementSchema,
      create(LandmarkMeasurementSchema, {
        sessionDigest: Buffer.from(digest, "base64url"),
        landmarkId: options.name,
        measureTime: timestampFromMs(Date.now()),
        channel,
        ...(options.location === undefined ? {} : { position: options.location }),
      }),
    );
    const signature = signer.sign("octomesh landmark measurement v1", measurement);
    const signed = create(SignedMeasurementSchema, { measurement, keyId: signer.keyId, signature });
    return Buffer.from(toBinary(SignedMeasurementSchema, signed)).toString("base64url");
  };

  const run = (socket: WebSocket, request: HttpRequest, end: ClientEnd, digest: string | undefined): void => {
    const id = randomBytes(16).toString("base64url");
    const address = options.reportedOf(end);
    const timeout = setTimeout(() => socket.terminate(), channelTimeoutMs);
    socket.on("error", (error) => log.debug({ err: error }, "a channel broke off"));
    socket.on("close", () => clearTimeout(timeout));
    const measure = async (pings: number): Promise<void> => {
      // Whoever answers pings answers echoes as soon: for those who do not, nobody waits longer.
      const isEnough = new AbortController();
      const echo = options.icmp?.ping(address, { ...icmpPings, signal: isEnough.signal });
      const before = options.timingOf(request, end.behindProxy);
      const roundTrips: number[] = [];
      const measured = () => ({
        // Of a connection that is closed the kernel tells nothing more.
        connection: socket.readyState === socket.OPEN ? options.timingOf(request, end.behindProxy) : before,
        roundTripUs: roundTrips.map(BigInt),
        sourceAddress: address,
      });
      // The report of a page that had no more time overtakes the end of its channel.
      if (role === "edge") running.set(id, () => ({ channel: measured(), icmpUs: undefined, digest }));
      await measureRoundTrips(socket, pings, roundTrips);
      isEnough.abort();
      const channel = measured();
      const icmpUs = await echo;
      if (running.delete(id) && roundTrips.length > 0) results.put(id, { channel, icmpUs, digest });
      if (socket.readyState !== socket.OPEN) return;
      const m = digest === undefined ? undefined : signMeasurement(digest, channel);
      socket.send(JSON.stringify({ t: "done", pings: roundTrips.length, ...(m === undefined ? {} : { m }) }));
      socket.close(1000);
    };
    let began = false;
    socket.on("message", (data, isBinary) => {
      const pings = isBinary || began ? undefined : readStart(data as Buffer);
      if (pings === undefined) return socket.close(1008);
      began = true;
      measure(pings).catch((error: unknown) => {
        log.error({ err: error }, "a channel failed");
        socket.close(1011);
      });
    });
    socket.send(JSON.stringify({ t: "hello", channel: id, landmarks: options.landmarks, v: 1 }));
  };

  const decide = async (
    request: HttpRequest,
  ): Promise<{ refusal: [string, string, number?] } | { digest: string | undefined; end: ClientEnd; free(): void }> => {
    if (options.pathOf(request) !== "/v1/ws") return { refusal: ["404 Not Found", "not_found"] };
    const { origin } = request.headers;
    if (origin !== undefined && !options.origins.allows(origin))
      return { refusal: ["403 Forbidden", "origin_not_allowed"] };
    const digest = new URLSearchParams((request.url ?? "").split("?")[1] ?? "").get("d") ?? undefined;
    // A landmark has nothing to say to whoever has no session.
    const isAsked = digest === undefined ? role === "edge" : digestPattern.test(digest);
    if (!isAsked) return { refusal: ["400 Bad Request", "missing_fields"] };
    const end = options.endOf(request);
    const waitMs = await limits.take(end.address);
    if (waitMs > 0) return { refusal: ["429 Too Many Requests", "rate_limited", waitMs] };
    const overloaded = { refusal: ["503 Service Unavailable", "overloaded", 5_000] as [string, string, number] };
    if (closing || sockets.clients.size >= maxChannels) return overloaded;
    const free = limits.open(end.address);
    return free === undefined ? overloaded : { digest, end, free };
  };

  return {
    get open() {
      return sockets.clients.size;
    },
    take(channel, sessionRef) {
      const found = running.get(channel)?.() ?? results.take(channel);
      running.delete(channel);
      if (found === undefined || found.channel.roundTripUs?.length === 0) return undefined;
      if (found.digest === undefined) return found;
      const digest = createHash("sha256").update(sessionRef).digest("base64url");
      return found.digest === digest ? found : undefined;
    },
    close() {
      closing = true;
      for (const socket of sockets.clients) socket.close(1001);
    },
    upgrade(request, socket, head) {
      const broken = (error: Error): void => log.debug({ err: error }, "a channel was broken off");
      socket.on("error", broken);
      void decide(request).then((decision) => {
        if ("refusal" in decision) return refuse(socket, ...decision.refusal);
        const { digest, end, free } = decision;
        socket.once("close", free);
        if (socket.destroyed || "stream" in request) return void free();
        sockets.handleUpgrade(request, socket, head, (accepted) => run(accepted, request, end, digest));
      }, broken);
    },
  };
}

function refuse(socket: Duplex, status: string, code: string, retryAfterMs?: number): void {
  const body = JSON.stringify({ error: code });
  const lines = [
    `HTTP/1.1 ${status}`,
    "content-type: application/json",
    `content-length: ${body.length}`,
    ...(retryAfterMs === undefined ? [] : [`retry-after: ${Math.ceil(retryAfterMs / 1000)}`]),
    "connection: close",
  ];
  socket.once("finish", () => socket.destroy());
  socket.end(`${lines.join("\r\n")}\r\n\r\n${body}`);
}

/** How many pings a channel's start message asks for; undefined for any other message. */
function readStart(message: Uint8Array): number | undefined {
  const start = parseFlatJson(message);
  const pings = start?.t === "start" ? start.pings : undefined;
  return Number.isInteger(pings) && Number(pings) >= 1 ? Math.min(maxPings, Number(pings)) : undefined;
}

import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type CidrList, parseCidrList } from "@octomesh/mesh/cidr";
import { type ListenTls, listen } from "@octomesh/mesh/listen";
import type { HttpRequest, HttpResponse } from "@octomesh/mesh/service";
import { ConnectionTiming_Degradation as Degradation } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import { SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import { type Verdict, Verdict_Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import type { Logger } from "pino";
import { Registry } from "prom-client";
import { createConnectionSignals } from "../signals/connection-signals.ts";
import { createIcmpEcho } from "../signals/icmp-echo.ts";
import { createAddressLimits } from "./address-limits.ts";
import { isRefusalOfTheEdge, overloaded, unprovisioned } from "./browser-error.ts";
import { type ClientEnd, createClientEnds, privateNetworks } from "./client-end.ts";
import { serveCollector } from "./collector-files.ts";
import type { Place } from "./edge-config.ts";
import { createEdgeMetrics } from "./edge-metrics.ts";
import { edgeVersion } from "./edge-version.ts";
import { createForwardQueue, type FirstOutcome, type ForwardQueue, type QueueLimits } from "./forward-queue.ts";
import { createLatencyEndpoint } from "./latency-endpoint.ts";
import type { OriginRule } from "./origin-rule.ts";
import { readBody } from "./read-body.ts";
import { readReportHead } from "./report-head.ts";
import type { Signer } from "./sign-bundle.ts";
import { createVerdictClient, type VerdictClient, type VerdictTls } from "./verdict-client.ts";

/** What an edge needs to forward. */
export interface EdgeKit {
  readonly license: string;
  readonly signer: Signer;
  /** Base URL of the verdict service; asked at each forward. */
  url(): string;
  /** TLS to it; asked at each forward, so that what replaced it holds from the next one on. */
  tls(): VerdictTls;
}

/** What an edge is made of. */
export interface EdgeOptions {
  /** A landmark pings browsers and signs what it measured, and takes no reports. */
  readonly role: "edge" | "landmark";
  /** The edge's name in signals and measurements: 1 to 64 characters. */
  readonly name: string;
  readonly location?: Place | undefined;
  readonly host: string;
  readonly port: number;
  readonly tls?: ListenTls | undefined;
  /** Listens without TLS off loopback too, where something in front ends it. */
  readonly allowPlaintext?: boolean;
  readonly origins: OriginRule;
  /** `wss:` URLs of other edges and landmarks, which pages are told. */
  readonly landmarks?: readonly string[];
  /** Who may say, by X-Forwarded-For or PROXY protocol, where a connection came from. */
  readonly trustedProxies?: CidrList;
  /** Demands a PROXY protocol header, version 1 or 2, of connections from the trusted proxies. */
  readonly proxyProtocol?: boolean;
  readonly exposeVerdict?: boolean;
  /** Stands in for every client's address in signals: for tests. */
  readonly exitIp?: string | undefined;
  /** Logs the address and timing of each report. */
  readonly debug?: boolean;
  readonly icmp?: boolean;
  readonly metricsToken?: string | undefined;
  /** Reports and channels together that one address may send in a minute. 600 by default. */
  readonly addressLimit?: number;
  /** How long a browser waits for the verdict service, milliseconds. 1,500 by default. */
  readonly forwardWaitMs?: number;
  readonly queue?: Partial<QueueLimits>;
  /** Stands before every path, such as `/octet`; paths without it are answered too. */
  readonly pathPrefix?: string;
  /** Signs measurements where there is no kit: of a landmark. */
  readonly signer?: Signer | undefined;
  /** Counts here, and leaves `/metrics` to whoever owns it. */
  readonly metrics?: Registry;
  readonly portVariable?: string;
  readonly hostVariable?: string;
  readonly log: Logger;
}

/** An edge that listens. */
export interface Edge {
  readonly port: number;
  readonly provisioned: boolean;
  /** Why the kernel does not time connections here; undefined where it does. */
  readonly degradation: Degradation | undefined;
  /**
   * Forwards with this kit from now on. What waits under the kit before is tried for 5 s more, and then dropped; without
   * a new kit it is dropped at once.
   */
  provision(kit: EdgeKit | undefined): void;
  /** Stops listening, lets requests end, and drains the queues, for up to `graceMs` each. */
  close(graceMs: number): Promise<void>;
}

interface Forwarding {
  readonly kit: EdgeKit;
  readonly client: VerdictClient;
  readonly queue: ForwardQueue;
  /** The code with which the verdict service refused the edge itself, as far as is known. */
  refusedBy: string | undefined;
}

const maxBodyBytes = 64 * 1024;
const bodyTimeoutMs = 10_000;
const retryLaterMs = 5_000;
const retireGraceMs = 5_000;
const defaultAddressLimit = 600;
const defaultForwardWaitMs = 1_500;

/**
 * Opens an edge: it collects, signs and forwards, and judges nothing. Throws a ConfigError where it cannot listen, which
 * includes plaintext off loopback without `allowPlaintext`.
 */
export async function createEdge(options: EdgeOptions): Promise<Edge> {
  const { log, role, pathPrefix = "", origins } = options;
  const trustedProxies = options.trustedProxies ?? parseCidrList("");
  const signals = createConnectionSignals({ log });
  const icmp = options.icmp === true ? createIcmpEcho({ log }) : undefined;
  const limits = createAddressLimits(options.addressLimit ?? defaultAddressLimit, performance.now.bind(performance));
  const endOf = createClientEnds({ trustedProxies, hasTls: options.tls !== undefined, log });
  const registry = options.metrics ?? new Registry();
  let forwarding: Forwarding | undefined;
  let closing = false;
  const retiring = new Set<Promise<void>>();

  const timingOf = (request: HttpRequest, behindProxy: boolean) => {
    const timing = signals.timingOf(request);
    return behindProxy ? { ...timing, degradation: Degradation.BEHIND_PROXY } : timing;
  };
  const reportedOf = ({ address }: ClientEnd): string => options.exitIp ?? address;
  const channels = createLatencyEndpoint({
    role,
    name: options.name,
    location: options.location,
    landmarks: options.landmarks ?? [],
    origins,
    limits,
    pathOf: (request) => pathOf(request, pathPrefix),
    endOf,
    reportedOf,
    timingOf,
    signer: () => forwarding?.kit.signer ?? options.signer,
    icmp,
    log,
  });
  const metrics = createEdgeMetrics(registry, {
    queue: () => forwarding?.queue,
    channels: () => channels.open,
  });

  const retire = (graceMs: number): void => {
    const old = forwarding;
    forwarding = undefined;
    if (old === undefined) return;
    const retired = old.queue.drain(graceMs).then((lost) => {
      old.client.close();
      metrics.lost(lost);
      if (lost > 0) log.warn({ bundles: lost }, "bundles were not forwarded before the grace was over");
      retiring.delete(retired);
    });
    retiring.add(retired);
  };

  const provision = (kit: EdgeKit | undefined): void => {
    retire(kit === undefined ? 0 : retireGraceMs);
    if (kit === undefined || closing) return;
    const client = createVerdictClient({
      url: () => kit.url(),
      license: kit.license,
      returnVerdict: options.exposeVerdict === true,
      tls: () => kit.tls(),
    });
    const opened: Forwarding = {
      kit,
      client,
      refusedBy: undefined,
      queue: createForwardQueue({
        async submit(bundle, signal) {
          const outcome = await client.submit(bundle, signal);
          // An attempt that we broke off says nothing of the service.
          if (signal.aborted) return outcome;
          metrics.attempt(outcome.kind);
          note(opened, outcome);
          return outcome;
        },
        ...(options.queue === undefined ? {} : { limits: options.queue }),
        ended: (outcome) => metrics.ended(outcome),
      }),
    };
    forwarding = opened;
    log.info(`signing on: kid=${kit.signer.keyId} ed25519 public key=${kit.signer.publicKey}`);
  };

  /** Says once, and not for each report, that the verdict service is out of reach or refuses this edge. */
  let isTold = false;
  const note = (of: Forwarding, outcome: Awaited<ReturnType<VerdictClient["submit"]>>): void => {
    if (outcome.kind === "away") {
      if (!isTold && !closing)
        log.warn({ problem: outcome.problem }, "the verdict service is out of reach: bundles wait");
      isTold = true;
      return;
    }
    if (isTold) log.info("the verdict service answers again");
    isTold = false;
    if (outcome.kind === "accepted") of.refusedBy = undefined;
    else if (outcome.kind === "refused" && isRefusalOfTheEdge(outcome.error)) {
      const { code } = outcome.error;
      if (of.refusedBy !== code) log.error({ code }, "the verdict service refuses this edge");
      of.refusedBy = code;
    }
  };

  const takeReport = async (request: HttpRequest, response: HttpResponse): Promise<void> => {
    const answer = (status: number, body: object, retryAfterMs?: number): void => {
      metrics.report("error" in body ? String(body.error) : "ok");
      if (retryAfterMs !== undefined)
        response.setHeader("retry-after", String(Math.max(1, Math.ceil(retryAfterMs / 1000))));
      sendJson(response, status, body);
    };
    const type = String(request.headers["content-type"] ?? "").split(";")[0];
    if (!/^\s*(?:application\/json|text\/plain)\s*$/i.test(type ?? ""))
      return answer(415, { error: "unsupported_media_type" });
    const end = endOf(request);
    const waitMs = await limits.take(end.address);
    if (waitMs > 0) return answer(429, { error: "rate_limited" }, waitMs);
    const body = await readBody(request, maxBodyBytes, bodyTimeoutMs);
    if (body.kind === "gone") return void response.destroy();
    if (body.kind === "too_large") {
      // Once it is answered, the rest of the body is not waited for (RFC 9113 section 8.1).
      if ("stream" in request) request.stream.once("finish", () => request.stream.close());
      else response.setHeader("connection", "close");
      return answer(413, { error: "too_large" });
    }
    const head = readReportHead(body.bytes);
    if (head === undefined) return answer(400, { error: "missing_fields" });
    const current = forwarding;
    if (current === undefined) return answer(unprovisioned.status, { error: unprovisioned.code }, retryLaterMs);
    const connection = timingOf(request, end.behindProxy);
    if (options.debug === true) {
      const { minRttUs = 0n, rttUs = 0n, degradation = 0 } = connection;
      log.info(
        {
          address: reportedOf(end),
          min_rtt_us: Number(minRttUs),
          rtt_us: Number(rttUs),
          degradation: Degradation[degradation],
        },
        "report",
      );
    }
    const measured = head.channel === undefined ? undefined : channels.take(head.channel, head.ref);
    const bytes = toBinary(
      SignalBundleSchema,
      create(SignalBundleSchema, {
        sessionRef: head.ref,
        edgeId: options.name,
        receiveTime: timestampFromMs(Date.now()),
        sourceAddress: reportedOf(end),
        collectorReport: body.bytes,
        connection,
        headerOrder: headerOrderOf(request),
        bundleId: randomBytes(16).toString("base64url"),
        edgeVersion,
        userAgent: cut(request.headers["user-agent"], 512),
        acceptLanguage: cut(request.headers["accept-language"], 256),
        icmpRttUs: BigInt(measured?.icmpUs ?? 0),
        ...(measured === undefined ? {} : { latencyChannel: measured.channel }),
        ...(options.location === undefined ? {} : { edgePosition: options.location }),
      }),
    );
    const { signer } = current.kit;
    const signature = signer.sign("octomesh edge signals v1", bytes);
    const added = current.queue.add({ bytes, keyId: signer.keyId, signature });
    if (added === undefined) return answer(overloaded.status, { error: overloaded.code }, retryLaterMs);
    const outcome = await withinTime(added.first, options.forwardWaitMs ?? defaultForwardWaitMs);
    if (outcome.kind === "queued") return answer(200, { ok: true });
    if (outcome.kind === "refused") {
      const { status, code } = outcome.error;
      const mayComeAgain = status === 429 || status === 503;
      return answer(status, { error: code }, mayComeAgain ? (outcome.retryAfterMs ?? retryLaterMs) : undefined);
    }
    const { verdict } = outcome.response;
    const isShown = options.exposeVerdict === true && verdict !== undefined;
    answer(200, isShown ? { ok: true, verdict: shownVerdict(verdict) } : { ok: true });
  };

  const mayReadMetrics = (request: HttpRequest): boolean => {
    const told = /^Bearer (.+)$/.exec(String(request.headers.authorization ?? ""))?.[1];
    if (options.metricsToken !== undefined) return told !== undefined && isSame(told, options.metricsToken);
    // A proxy of the same network would make every caller private.
    const { address, behindProxy } = endOf(request);
    return !behindProxy && privateNetworks?.includes(address) === true;
  };

  const problems = (): string[] => {
    const found: string[] = [];
    if (closing) found.push("closing");
    if (role === "landmark") return found;
    if (forwarding === undefined) found.push(unprovisioned.code);
    else if (forwarding.refusedBy !== undefined) found.push(forwarding.refusedBy);
    return found;
  };

  const answerGet = async (path: string, request: HttpRequest, response: HttpResponse): Promise<void> => {
    if (path === "/v1/ping") {
      response.writeHead(204, { "timing-allow-origin": "*", "cache-control": "no-store" });
      response.end();
    } else if (path === "/v1/ws") {
      // HTTP/2 forbids the field (RFC 9113 section 8.2.2), and Node throws for it.
      if (!("stream" in request)) response.setHeader("upgrade", "websocket");
      sendJson(response, 426, { error: "upgrade_required" });
    } else if (path === "/health") {
      const provisioned = role === "landmark" ? options.signer !== undefined : forwarding !== undefined;
      sendJson(response, 200, { ok: true, role, version: edgeVersion, provisioned });
    } else if (path === "/ready") {
      const reasons = problems();
      sendJson(response, reasons.length === 0 ? 200 : 503, { ready: reasons.length === 0, reasons });
    } else if (path === "/metrics" && options.metrics === undefined && mayReadMetrics(request)) {
      response.writeHead(200, { "content-type": registry.contentType, "cache-control": "no-store" });
      response.end(await registry.metrics());
    } else if (role !== "edge" || !serveCollector(path, response)) {
      sendJson(response, 404, { error: "not_found" });
    }
  };

  const handler = async (request: HttpRequest, response: HttpResponse): Promise<void> => {
    const path = pathOf(request, pathPrefix);
    const { method } = request;
    const { origin } = request.headers;
    response.setHeader("x-content-type-options", "nosniff");
    if (path === "/v1/signals" || path === "/v1/ping" || path === "/v1/ws") {
      response.setHeader("vary", "Origin");
      if (origin !== undefined) {
        if (!origins.allows(origin)) return sendJson(response, 403, { error: "origin_not_allowed" });
        response.setHeader("access-control-allow-origin", origins.any ? "*" : origin);
        response.setHeader("access-control-expose-headers", "retry-after");
      }
      if (method === "OPTIONS") {
        response.writeHead(204, {
          "access-control-allow-methods": "GET, POST",
          "access-control-allow-headers": "content-type",
          "access-control-max-age": "7200",
        });
        response.end();
        return;
      }
    }
    if (path === "/v1/signals" && role === "edge") {
      if (method === "POST") return takeReport(request, response);
      response.setHeader("allow", "POST, OPTIONS");
      return sendJson(response, 405, { error: "method_not_allowed" });
    }
    if (method !== "GET" && method !== "HEAD") return sendJson(response, 404, { error: "not_found" });
    return answerGet(path, request, response);
  };

  const listener = await listen({
    host: options.host,
    port: options.port,
    ...(options.tls === undefined ? { allowPlaintext: options.allowPlaintext === true } : { tls: options.tls }),
    ...(options.proxyProtocol === true ? { proxyProtocolFrom: trustedProxies } : {}),
    handler,
    upgrade: (request, socket, head) => channels.upgrade(request, socket, head),
    observe: signals,
    limits: { requestTimeoutMs: 30_000 },
    ...(options.portVariable === undefined ? {} : { portVariable: options.portVariable }),
    ...(options.hostVariable === undefined ? {} : { hostVariable: options.hostVariable }),
    log,
  });
  if (options.debug === true) log.warn("EDGE_DEBUG is on: addresses of end users are written to this log");
  if (origins.any) log.warn("every origin may report to this edge (ALLOWED_ORIGIN=*)");
  if (options.exposeVerdict === true) log.warn("EDGE_EXPOSE_VERDICT is on: browsers are told verdicts");

  return {
    port: listener.port,
    degradation: signals.degradation,
    get provisioned() {
      return forwarding !== undefined;
    },
    provision,
    async close(graceMs) {
      closing = true;
      channels.close();
      await listener.close(graceMs);
      retire(graceMs);
      await Promise.all(retiring);
      icmp?.close();
    },
  };
}

function shownVerdict(verdict: Verdict): object {
  return {
    ...(verdict.country === "" ? {} : { country: verdict.country }),
    confidence: verdict.confidence,
    alarm: (Verdict_Alarm[verdict.alarm] ?? "").toLowerCase(),
  };
}

function pathOf(request: HttpRequest, prefix: string): string {
  const path = (request.url ?? "/").split("?")[0] ?? "/";
  return prefix !== "" && path.startsWith(`${prefix}/`) ? path.slice(prefix.length) : path;
}

function sendJson(response: HttpResponse, status: number, body: object): void {
  response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store" });
  response.end(JSON.stringify(body));
}

function headerOrderOf(request: HttpRequest): string[] {
  return request.rawHeaders
    .filter((_, index) => index % 2 === 0)
    .slice(0, 100)
    .map((name) => name.slice(0, 64));
}

function cut(value: string | undefined, length: number): string {
  return (value ?? "").slice(0, length);
}

function isSame(told: string, expected: string): boolean {
  const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(told), digest(expected));
}

async function withinTime(first: Promise<FirstOutcome>, waitMs: number): Promise<FirstOutcome> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<FirstOutcome>((resolve) => {
    timer = setTimeout(() => resolve({ kind: "queued" }), waitMs);
  });
  const outcome = await Promise.race([first, late]);
  clearTimeout(timer);
  return outcome;
}

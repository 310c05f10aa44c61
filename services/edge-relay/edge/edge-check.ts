import { X509Certificate } from "node:crypto";
import { connect as connectHttp2 } from "node:http2";
import { connect as connectTls } from "node:tls";
import { create, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { isLoopbackHost } from "@octomesh/mesh/cidr";
import { ConnectionTiming_Degradation as Degradation } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import { SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import { pino } from "pino";
import { createConnectionSignals } from "../signals/connection-signals.ts";
import { createIcmpEcho } from "../signals/icmp-echo.ts";
import type { EdgeConfig } from "./edge-config.ts";
import type { EdgeFiles } from "./edge-files.ts";
import { edgeVersion } from "./edge-version.ts";
import { expiryOf } from "./server-files.ts";
import { createVerdictClient, type ForwardOutcome } from "./verdict-client.ts";

/** One thing that was looked at. */
export interface Finding {
  readonly name: string;
  /** `failed`: the edge cannot do its work. `warning`: it can, but worse than it could. */
  readonly state: "ok" | "warning" | "failed";
  readonly text: string;
}

const timeoutMs = 5_000;
const dayMs = 86_400_000;
/** A `Date` header counts whole seconds, and an answer takes its time. */
const clockWarningMs = 2_000;
const clockFailureMs = 30_000;
const soonMs = 14 * dayMs;

/** What a refusal of the edge itself means, and what helps. */
const advice: ReadonlyMap<string, string> = new Map([
  ["license_invalid", "the licence is unknown to this verdict service: OCTET_URL may name another deployment's"],
  ["license_revoked", "the licence was revoked"],
  ["license_expired", "the licence expired"],
  [
    "client_cert_required",
    "the licence requires a client certificate, and none arrived: a proxy before the verdict service may end TLS",
  ],
  ["client_cert_revoked", "the client certificate was revoked"],
  ["client_cert_mismatch", "the client certificate is another licence's, or signed by another deployment"],
  ["edge_key_unknown", "the signing key is not registered for this licence: EDGE_SIGNING_KEY_ID may be another's"],
  ["edge_signature_invalid", "EDGE_SIGNING_KEY is not the key that EDGE_SIGNING_KEY_ID names"],
  ["edge_signature_required", "the verdict service saw no signature"],
  ["edge_unprovisioned", "what answers at OCTET_URL is no verdict service"],
]);

/**
 * Looks at what an edge needs, without opening its port: the files, the verdict service with this licence, certificate
 * and key, the clock, what the kernel tells, and what stands before the edge. Nothing of a session is sent. `publicUrl` is
 * where pages reach the edge: with it, whether somebody else ends TLS there. Takes some 5 s at most.
 */
export async function checkEdge(config: EdgeConfig, files: EdgeFiles, publicUrl?: string): Promise<Finding[]> {
  const findings = [...checkExpiry(config, files)];
  if (config.role === "edge") {
    const [license, clock] = await Promise.all([checkLicense(config, files), checkClock(config, files)]);
    findings.push(license, clock);
  }
  const front = publicUrl === undefined ? undefined : await checkFront(publicUrl, files);
  if (front !== undefined) findings.push(front);
  findings.push(checkTiming(config, front));
  if (config.icmp) findings.push(checkIcmp());
  return findings;
}

function checkExpiry(config: EdgeConfig, files: EdgeFiles): Finding[] {
  const certificate = files.server?.options().cert;
  const times: [string, number | undefined][] = [
    ["licence", config.facts?.expiresMs],
    ["client certificate", files.clientExpiresMs()],
    ["server certificate", typeof certificate === "string" ? expiryOf(certificate) : undefined],
  ];
  return times.flatMap(([name, expiresMs]) => {
    if (expiresMs === undefined) return [];
    const text = `good until ${new Date(expiresMs).toISOString()}`;
    const state = expiresMs - Date.now() < soonMs ? "warning" : "ok";
    return [{ name, state, text } as const];
  });
}

/** Sends a signed bundle of no session, which the verdict service refuses once it has looked at everything before. */
async function checkLicense(config: EdgeConfig, files: EdgeFiles): Promise<Finding> {
  const name = "verdict service";
  const { signer, octetUrl, license } = config;
  const client = createVerdictClient({
    url: () => octetUrl,
    license,
    returnVerdict: false,
    tls: () => files.verdictTls(),
    timeoutMs,
  });
  try {
    const receiveTime = timestampFromMs(Date.now());
    const bundle = create(SignalBundleSchema, { edgeId: config.name, edgeVersion, receiveTime });
    const bytes = toBinary(SignalBundleSchema, bundle);
    const signature = signer.sign("octomesh edge signals v1", bytes);
    const outcome = await client.submit({ bytes, keyId: signer.keyId, signature });
    return { name, ...verdictOn(outcome, octetUrl) };
  } finally {
    client.close();
  }
}

function verdictOn(outcome: ForwardOutcome, url: string): Omit<Finding, "name"> {
  switch (outcome.kind) {
    case "accepted":
      return { state: "failed", text: `${url} takes a bundle of no session: it is no verdict service` };
    case "limited":
      return { state: "warning", text: `${url} is reached, and the licence has used up what it may for now` };
    case "failed":
      return { state: "failed", text: `${url} is reached, and fails` };
    case "away":
      return { state: "failed", text: `${url} is out of reach (${outcome.problem})` };
    case "refused": {
      const { code } = outcome.error;
      if (code === "missing_fields")
        return { state: "ok", text: `${url} is reached, and takes this licence, certificate and signing key` };
      return { state: "failed", text: `${url} refuses this edge with ${code}: ${advice.get(code) ?? "see its log"}` };
    }
  }
}

async function checkClock(config: EdgeConfig, files: EdgeFiles): Promise<Finding> {
  const name = "clock";
  const { ca, certificate, key } = files.verdictTls();
  const begin = Date.now();
  const date = await dateOf(config.octetUrl, {
    ...(ca === undefined ? {} : { ca }),
    ...(certificate === undefined ? {} : { cert: certificate }),
    ...(key === undefined ? {} : { key }),
  });
  if (date === undefined) return { name, state: "warning", text: "the verdict service told no time to compare with" };
  // Half a second for the part of the second that is cut off.
  const skewMs = (begin + Date.now()) / 2 - (date + 500);
  const size = Math.abs(skewMs);
  if (size < clockWarningMs) return { name, state: "ok", text: "agrees with the verdict service's" };
  const text = `${(size / 1000).toFixed(0)} s ${skewMs > 0 ? "ahead of" : "behind"} the verdict service's`;
  return { name, state: size < clockFailureMs ? "warning" : "failed", text };
}

/** The `Date` of an answer, milliseconds since the Unix epoch; undefined where there is none. */
function dateOf(url: string, tls: { ca?: string; cert?: string; key?: string }): Promise<number | undefined> {
  return new Promise((resolve) => {
    const session = connectHttp2(url, tls);
    const finish = (date?: number): void => {
      clearTimeout(timer);
      session.destroy();
      resolve(date);
    };
    const timer = setTimeout(finish, timeoutMs);
    session.on("error", () => finish());
    const request = session.request({ ":path": "/.well-known/verdict-jwks.json" });
    request.on("error", () => finish());
    request.on("response", (headers) => {
      const ms = Date.parse(String(headers.date ?? ""));
      finish(Number.isNaN(ms) ? undefined : ms);
    });
    request.end();
  });
}

/** Whether the certificate that pages see is the edge's own. */
async function checkFront(publicUrl: string, files: EdgeFiles): Promise<Finding> {
  const name = "public URL";
  const { hostname, port, protocol } = new URL(publicUrl);
  if (protocol !== "https:") {
    const state = isLoopbackHost(hostname) ? "ok" : "failed";
    return { name, state, text: `${publicUrl} is plain http: pages reach it on this machine alone` };
  }
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  const seen = await certificateAt(host, port === "" ? 443 : Number(port));
  if (typeof seen === "string") return { name, state: "failed", text: `${publicUrl} is out of reach (${seen})` };
  const own = files.server?.options().cert;
  const isOwn = typeof own === "string" && new X509Certificate(own).fingerprint256 === seen.fingerprint256;
  return isOwn
    ? { name, state: "ok", text: `${publicUrl} shows this edge's own certificate` }
    : {
        name,
        state: "warning",
        text: `${publicUrl} shows a certificate that is not this edge's: a proxy ends TLS before it`,
      };
}

function certificateAt(host: string, port: number): Promise<X509Certificate | string> {
  return new Promise((resolve) => {
    // Looked at, and trusted with nothing.
    const socket = connectTls({ host, port, servername: host, rejectUnauthorized: false, timeout: timeoutMs });
    const finish = (result: X509Certificate | string): void => {
      socket.destroy();
      resolve(result);
    };
    socket.on("secureConnect", () => finish(socket.getPeerX509Certificate() ?? "it shows no certificate"));
    socket.on("timeout", () => finish("it does not answer"));
    socket.on("error", (error) => finish("code" in error ? String(error.code) : error.message));
  });
}

/** What the kernel's timing is worth here, in plain words. */
function checkTiming(config: EdgeConfig, front: Finding | undefined): Finding {
  const name = "timing";
  const { degradation } = createConnectionSignals({ log: pino({ level: "silent" }) });
  const none = (why: string): Finding => ({
    name,
    state: "warning",
    text: `none: ${why}. Verdicts are made without it`,
  });
  switch (degradation) {
    case undefined:
      break;
    case Degradation.NOT_LINUX:
      return none("this is not Linux");
    case Degradation.NO_PERMISSION:
      return none("a sandbox forbids to ask the kernel (getsockopt TCP_INFO)");
    default:
      return none("the kernel cannot be asked (TCP_INFO)");
  }
  if (config.tlsFiles === undefined)
    return none("the edge has no TLS of its own, so that pages reach it through something that ends their connection");
  if (front !== undefined && front.state !== "ok") return none("the edge's public URL does not lead to its own TLS");
  if (config.trustedProxies.size > 0)
    return none("the connections of EDGE_TRUSTED_PROXIES are the proxies' own; others are timed");
  const proof =
    front === undefined
      ? "as long as visitors' connections end here (--url shows whether they do)"
      : "visitors end their TLS here";
  return { name, state: "ok", text: `whole: the kernel tells it, and ${proof}` };
}

function checkIcmp(): Finding {
  const echo = createIcmpEcho({ log: pino({ level: "silent" }) });
  const { available } = echo;
  echo.close();
  return available
    ? { name: "ICMP", state: "ok", text: "echoes can be sent" }
    : { name: "ICMP", state: "warning", text: "no echo can be sent: EDGE_ICMP needs CAP_NET_RAW" };
}

import { randomBytes } from "node:crypto";
import { request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import { edgeSpiffeIdOf } from "@octomesh/mesh/edge-connection";
import { newId } from "@octomesh/mesh/ids";
import type { TestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { createLicenseSigner } from "@octomesh/mesh/test/license-fixture";
import { defaultTrustDomain } from "@octomesh/mesh/tls";
import * as x509 from "@octomesh/mesh/x509";
import { type Logger, pino } from "pino";
import { WebSocket } from "ws";
import type { EdgeKit } from "../edge/edge.ts";
import { createSigner, type Signer } from "../edge/sign-bundle.ts";

/** Everything that an edge proves itself with. */
export interface TestKit {
  readonly orgId: string;
  readonly licenseId: string;
  readonly license: string;
  readonly certificate: string;
  readonly key: string;
  readonly signingKeyId: string;
  readonly seed: Buffer;
  readonly signer: Signer;
  /** The kit for a verdict service whose certificate the authority signed. */
  at(url: () => string, change?: { certificate?: string | undefined; key?: string | undefined }): EdgeKit;
}

const licenses = createLicenseSigner();

/** Makes a kit, its client certificate by the authority. */
export async function makeKit(
  authority: TestAuthority,
  options: { claims?: Record<string, unknown>; notAfter?: Date } = {},
): Promise<TestKit> {
  const [orgId, licenseId] = [newId("org"), newId("lic")];
  const license = await (await licenses).sign({ claims: { sub: licenseId, org: orgId, ...options.claims } });
  const { certificate, key } = await issueClient(authority, orgId, licenseId, options.notAfter);
  const signingKeyId = newId("esk");
  const seed = randomBytes(32);
  const signer = createSigner(signingKeyId, seed);
  return {
    orgId,
    licenseId,
    license,
    certificate,
    key,
    signingKeyId,
    seed,
    signer,
    at: (url, change) => ({
      license,
      signer,
      url,
      tls: () => ({ ca: authority.bundle, certificate, key, ...change }),
    }),
  };
}

/** Issues a client certificate for a licence. */
export async function issueClient(
  authority: TestAuthority,
  orgId: string,
  licenseId: string,
  notAfter?: Date,
): Promise<{ certificate: string; key: string; certificateId: string }> {
  const certificateId = newId("ecr");
  const { certificate, key } = await authority.issue({
    uris: [edgeSpiffeIdOf(defaultTrustDomain, orgId, certificateId)],
    subject: `O=${orgId}, OU=${licenseId}, CN=${certificateId}`,
    usages: [x509.ExtendedKeyUsage.clientAuth],
    ...(notAfter === undefined ? {} : { notAfter, notBefore: new Date(notAfter.getTime() - 86_400_000) }),
  });
  return { certificate, key, certificateId };
}

/** A log whose lines a test can read. */
export function createTestLog(): { log: Logger; logged: string[] } {
  const logged: string[] = [];
  return { logged, log: pino({ level: "trace" }, { write: (line: string) => void logged.push(line) }) };
}

/** What an edge answered. */
export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly text: string;
  /** The text as JSON; undefined where it is none. */
  readonly body: unknown;
}

/** Sends a request as a program would, with whatever headers; `ca` is trusted beside nothing else. */
export function ask(
  url: string,
  options: {
    method?: string;
    headers?: Record<string, string>;
    body?: string | Buffer;
    ca?: string;
    localAddress?: string;
  } = {},
): Promise<Answer> {
  const { body, ...rest } = options;
  return new Promise((resolve, reject) => {
    const send = url.startsWith("https:") ? requestHttps : requestHttp;
    const outgoing = send(url, { agent: false, ...rest }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(chunks).toString();
        resolve({ status: response.statusCode ?? 0, headers: response.headers, text, body: parse(text) });
      });
    });
    outgoing.on("error", reject);
    outgoing.end(body);
  });
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** A report as collectors write it. */
export function reportOf(ref: string, more: Record<string, unknown> = {}): string {
  return JSON.stringify({
    v: 1,
    ref,
    mode: "full",
    env: { languages: ["de-DE"], tz: "Europe/Berlin", offset: -60, platform: "Linux x86_64" },
    timing: { step: 0.1, rt: [{ url: "https://edge.example", n: 12, min: 20.5, med: 21 }], pings: 0, ms: 900 },
    ...more,
  });
}

/** A reference that no other test uses. */
export function newRef(): string {
  return `sess_${randomBytes(12).toString("base64url")}`;
}

/** Posts a report. */
export function report(
  url: string,
  ref: string,
  options: { more?: Record<string, unknown>; headers?: Record<string, string>; ca?: string } = {},
): Promise<Answer> {
  const { more, headers, ca } = options;
  return ask(`${url}/v1/signals`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: reportOf(ref, more),
    ...(ca === undefined ? {} : { ca }),
  });
}

/** What a latency channel said. */
export interface ChannelRun {
  readonly hello: { t: string; channel: string; landmarks: string[]; v: number };
  readonly done: { t: string; pings: number; m?: string } | undefined;
  readonly closeCode: number;
}

/** Opens a channel and plays it through; `start` is what is sent after the hello. Rejects where it is refused. */
export function runChannel(
  url: string,
  options: { ca?: string; headers?: Record<string, string>; start?: string | Buffer } = {},
): Promise<ChannelRun> {
  return new Promise((resolve, reject) => {
    const { start = JSON.stringify({ t: "start", pings: 5 }), ...rest } = options;
    const socket = new WebSocket(url, rest);
    let hello: ChannelRun["hello"] | undefined;
    let done: ChannelRun["done"];
    socket.on("message", (data) => {
      const message = JSON.parse(String(data)) as { t: string };
      if (message.t === "hello") {
        hello = message as ChannelRun["hello"];
        socket.send(start);
      } else done = message as ChannelRun["done"];
    });
    socket.on("unexpected-response", (request, response) => {
      response.resume();
      request.destroy();
      reject(new Error(`refused with ${response.statusCode}`));
    });
    socket.on("error", reject);
    socket.on("close", (closeCode) => {
      if (hello === undefined) reject(new Error("closed without a hello"));
      else resolve({ hello, done, closeCode });
    });
  });
}

import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { connect } from "node:net";
import { fromBinary } from "@bufbuild/protobuf";
import { parseCidrList } from "@octomesh/mesh/cidr";
import { fail, Reason } from "@octomesh/mesh/errors";
import { createTestAuthority, type TestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { ConnectionTiming_Degradation as Degradation } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import {
  LandmarkMeasurementSchema,
  SignedMeasurementSchema,
} from "@octomesh/proto/octomesh/edge/v1/landmark_measurement_pb";
import { Verdict_Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import { Registry } from "prom-client";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import {
  ask,
  createTestLog,
  makeKit,
  newRef,
  report,
  reportOf,
  runChannel,
  type TestKit,
} from "../test/edge-fixture.ts";
import { isSignedBy, startVerdictServer, type VerdictServer } from "../test/verdict-server.ts";
import { createEdge, type Edge, type EdgeOptions } from "./edge.ts";
import { createOriginRule, type OriginRule } from "./origin-rule.ts";

const shop = "https://shop.example";
const origins = createOriginRule([shop]) as OriginRule;
let authority: TestAuthority;
let verdict: VerdictServer;
let kit: TestKit;
const keys = new Map<string, string>();
const opened: Edge[] = [];

beforeAll(async () => {
  authority = await createTestAuthority();
  kit = await makeKit(authority);
  keys.set(kit.signingKeyId, kit.signer.publicKey);
  verdict = await startVerdictServer({ authority, keys });
});

afterAll(() => verdict.stop());

afterEach(async () => {
  verdict.answer(undefined);
  await Promise.all(opened.splice(0).map((edge) => edge.close(500)));
});

interface Opened {
  readonly edge: Edge;
  readonly url: string;
  readonly logged: string[];
}

async function open(options: Partial<EdgeOptions> = {}, provision = true): Promise<Opened> {
  const { log, logged } = createTestLog();
  const edge = await createEdge({ role: "edge", name: "fra-1", host: "127.0.0.1", port: 0, origins, log, ...options });
  if (provision) edge.provision(kit.at(() => verdict.url));
  opened.push(edge);
  return { edge, logged, url: `${options.tls === undefined ? "http" : "https"}://localhost:${edge.port}` };
}

async function openTls(options: Partial<EdgeOptions> = {}): Promise<Opened> {
  const { key, certificate } = await authority.issue();
  return open({ tls: { options: () => ({ key, cert: certificate }) }, ...options });
}

const lastBundle = () => verdict.taken.at(-1)?.bundle;

describe("a report", () => {
  it("is joined with what the edge saw of a TLS connection, signed, and forwarded with the edge's credentials", async () => {
    const { url } = await openTls({ location: { latitude: 50.11, longitude: 8.68 } });
    const ref = newRef();
    const headers = { origin: shop, "user-agent": "Browser/1", "accept-language": "de-DE,de;q=0.9" };
    const answer = await report(url, ref, { headers, ca: authority.bundle });
    expect(answer).toMatchObject({ status: 200, body: { ok: true } });
    expect(answer.headers["access-control-allow-origin"]).toBe(shop);
    const taken = verdict.taken.at(-1);
    expect(taken).toMatchObject({
      license: kit.license,
      keyId: kit.signingKeyId,
      isSigned: true,
      returnVerdict: false,
    });
    expect(taken?.clientSubject).toContain(`OU=${kit.licenseId}`);
    const { bundle } = taken ?? {};
    expect(bundle).toMatchObject({
      sessionRef: ref,
      edgeId: "fra-1",
      sourceAddress: "127.0.0.1",
      userAgent: "Browser/1",
      acceptLanguage: "de-DE,de;q=0.9",
      edgePosition: { latitude: 50.11, longitude: 8.68 },
      connection: { protocol: "http/1.1", clientHello: { ja4: expect.stringMatching(/^t1[23]/) } },
    });
    expect(bundle?.headerOrder).toEqual(expect.arrayContaining(["origin", "user-agent", "content-type"]));
    expect(Buffer.from(bundle?.collectorReport ?? []).toString()).toBe(reportOf(ref));
    expect(bundle?.bundleId).toMatch(/^[\w-]{22}$/);
    expect(Number(bundle?.connection?.tlsHandshakeUs)).toBeGreaterThan(0);
    if (process.platform === "linux") {
      expect(Number(bundle?.connection?.minRttUs)).toBeGreaterThan(0);
      expect(bundle?.connection?.degradation).toBe(Degradation.UNSPECIFIED);
    }
  });

  it("says nothing of a user agent where the browser said nothing", async () => {
    const { url } = await open();
    await report(url, newRef());
    expect([lastBundle()?.userAgent, lastBundle()?.acceptLanguage]).toEqual(["", ""]);
  });

  it("is taken by fetch, as text/plain, and under the path prefix", async () => {
    const { url } = await open({ pathPrefix: "/octet" });
    for (const path of ["/v1/signals", "/octet/v1/signals"]) {
      const ref = newRef();
      const response = await fetch(url + path, { method: "POST", body: reportOf(ref) });
      expect([response.status, await response.json()]).toEqual([200, { ok: true }]);
      expect(lastBundle()?.sessionRef).toBe(ref);
    }
  });

  it("shows the verdict only where that is switched on", async () => {
    const response = { ok: true, verdict: { country: "DE", confidence: 0.9, alarm: Verdict_Alarm.NONE } };
    verdict.answer(() => response);
    const hidden = await open();
    expect((await report(hidden.url, newRef())).body).toEqual({ ok: true });
    const shown = await open({ exposeVerdict: true });
    expect((await report(shown.url, newRef())).body).toEqual({
      ok: true,
      verdict: { country: "DE", confidence: expect.closeTo(0.9), alarm: "none" },
    });
    expect(verdict.taken.at(-1)?.returnVerdict).toBe(true);
    expect(shown.logged.join()).toContain("EDGE_EXPOSE_VERDICT");
  });

  it("is good for one session, and the same bundle again is no second report", async () => {
    const { url } = await open();
    const ref = newRef();
    let isFirst = true;
    const seen: string[] = [];
    verdict.answer(({ bundle }) => {
      seen.push(bundle.bundleId);
      if (isFirst) {
        isFirst = false;
        throw fail(Reason.SERVICE_UNAVAILABLE, "later", {}, { retryAfterMs: 10 });
      }
      return { ok: true, duplicate: true };
    });
    expect((await report(url, ref)).body).toEqual({ ok: true });
    await expect.poll(() => seen.length).toBe(2);
    expect(seen[0]).toBe(seen[1]);
    verdict.answer(undefined);
    expect((await report(url, ref)).body).toEqual({ ok: true });
    expect(await report(url, ref)).toMatchObject({ status: 409, body: { error: "session_reported" } });
  });

  it("waits for no verdict longer than it may", async () => {
    const { url } = await open({ forwardWaitMs: 50 });
    let release = (): void => undefined;
    verdict.answer(
      () =>
        new Promise((resolve) => {
          release = () => resolve({ ok: true });
        }),
    );
    expect((await report(url, newRef())).body).toEqual({ ok: true });
    release();
  });
});

describe("a refusal of the verdict service", () => {
  const table: [Reason, number, string][] = [
    [Reason.SIGNALS_INCOMPLETE, 400, "missing_fields"],
    [Reason.REQUEST_TOO_LARGE, 413, "too_large"],
    [Reason.SESSION_REPORTED, 409, "session_reported"],
    [Reason.NONCE_MISMATCH, 403, "nonce_mismatch"],
    [Reason.CLIENT_TOO_OLD, 400, "client_too_old"],
    [Reason.EDGE_CERTIFICATE_REQUIRED, 401, "client_cert_required"],
    [Reason.EDGE_CERTIFICATE_REVOKED, 403, "client_cert_revoked"],
    [Reason.EDGE_CERTIFICATE_MISMATCH, 403, "client_cert_mismatch"],
    [Reason.EDGE_SIGNATURE_REQUIRED, 401, "edge_signature_required"],
    [Reason.EDGE_KEY_UNKNOWN, 401, "edge_key_unknown"],
    [Reason.EDGE_SIGNATURE_INVALID, 401, "edge_signature_invalid"],
    [Reason.CREDENTIAL_UNKNOWN, 401, "license_invalid"],
    [Reason.CREDENTIAL_REVOKED, 403, "license_revoked"],
    [Reason.CREDENTIAL_EXPIRED, 403, "license_expired"],
    [Reason.CALLER_KIND_NOT_ALLOWED, 401, "license_invalid"],
    [Reason.NOT_IMPLEMENTED, 503, "edge_unprovisioned"],
  ];

  it.each(table)("of reason %s is told as %s %s, and ends the bundle", async (reason, status, code) => {
    const { url, edge } = await open({ metricsToken: "watch" });
    verdict.answer(() => {
      throw fail(reason, "no");
    });
    const before = verdict.taken.length;
    expect(await report(url, newRef())).toMatchObject({ status, body: { error: code } });
    expect(verdict.taken.length).toBe(before + 1);
    const { text } = await ask(`${url}/metrics`, { headers: { authorization: "Bearer watch" } });
    expect(text).toContain('octet_edge_bundles_total{outcome="refused"} 1');
    expect(text).toContain("octet_edge_queue_bundles 0");
    expect(edge.provisioned).toBe(true);
  });

  it("of the edge itself shows in its readiness, until it is taken again", async () => {
    const { url, logged } = await open();
    verdict.answer(() => {
      throw fail(Reason.CREDENTIAL_REVOKED, "revoked");
    });
    for (let i = 0; i < 3; i += 1) await report(url, newRef());
    expect(await ask(`${url}/ready`)).toMatchObject({
      status: 503,
      body: { ready: false, reasons: ["license_revoked"] },
    });
    expect(logged.filter((line) => line.includes("refuses this edge"))).toHaveLength(1);
    verdict.answer(undefined);
    await report(url, newRef());
    expect(await ask(`${url}/ready`)).toMatchObject({ status: 200, body: { ready: true, reasons: [] } });
  });

  it("by a signature that the service does not know comes from a real verification", async () => {
    const other = await makeKit(authority);
    const { url, edge } = await open();
    edge.provision(other.at(() => verdict.url));
    expect((await report(url, newRef())).body).toEqual({ error: "edge_key_unknown" });
    keys.set(other.signingKeyId, kit.signer.publicKey);
    expect((await report(url, newRef())).body).toEqual({ error: "edge_signature_invalid" });
  });
});

describe("a limit of the verdict service", () => {
  it("holds bundles back as long as it says, and they are taken then", async () => {
    const { url } = await open();
    let refusals = 0;
    const times: number[] = [];
    verdict.answer(() => {
      times.push(performance.now());
      if (refusals === 0) {
        refusals += 1;
        throw fail(Reason.RATE_LIMITED, "slowly", {}, { retryAfterMs: 300 });
      }
      return { ok: true };
    });
    expect((await report(url, newRef())).body).toEqual({ ok: true });
    expect((await report(url, newRef())).body).toEqual({ ok: true });
    await expect.poll(() => times.length).toBe(3);
    expect((times[1] ?? 0) - (times[0] ?? 0)).toBeGreaterThanOrEqual(290);
  });

  it("that outlasts the bundle is told to the browser with the time", async () => {
    const { url } = await open();
    verdict.answer(() => {
      throw fail(Reason.RATE_LIMITED, "tomorrow", {}, { retryAfterMs: 3_600_000 });
    });
    const answer = await report(url, newRef());
    expect(answer).toMatchObject({ status: 429, body: { error: "rate_limited" } });
    expect(answer.headers["retry-after"]).toBe("3600");
  });
});

describe("while the verdict service is away", () => {
  it("bundles wait, up to the bound of the queue, and go out when it is back", async () => {
    const away = await startVerdictServer({ authority, keys });
    const { port } = away;
    await away.stop();
    const { url, edge, logged } = await open({ queue: { maxBundles: 8 } }, false);
    edge.provision(kit.at(() => `https://localhost:${port}`));
    const refs = Array.from({ length: 8 }, newRef);
    for (const ref of refs) expect((await report(url, ref)).body).toEqual({ ok: true });
    const full = await report(url, newRef());
    expect(full).toMatchObject({ status: 503, body: { error: "overloaded" } });
    expect(full.headers["retry-after"]).toBe("5");
    expect(logged.filter((line) => line.includes("out of reach"))).toHaveLength(1);
    expect(logged.join()).not.toContain("octet_live_");
    const back = await startVerdictServer({ authority, keys, port });
    try {
      await expect
        .poll(() => new Set(back.taken.map(({ bundle }) => bundle.sessionRef)), { timeout: 15_000 })
        .toEqual(new Set(refs));
      await expect.poll(async () => (await report(url, newRef())).status).toBe(200);
    } finally {
      await edge.close(500);
      await back.stop();
    }
  });

  it("an end waits for bundles of the kit and of those before, for the grace", async () => {
    const other = await makeKit(authority);
    keys.set(other.signingKeyId, other.signer.publicKey);
    const { url, edge } = await open({ forwardWaitMs: 0 });
    const held: (() => void)[] = [];
    verdict.answer(() => new Promise((resolve) => held.push(() => resolve({ ok: true }))));
    await report(url, newRef());
    edge.provision(other.at(() => verdict.url));
    await report(url, newRef());
    await expect.poll(() => held.length).toBe(2);
    let isClosed = false;
    const closed = edge.close(5_000).then(() => {
      isClosed = true;
    });
    held[1]?.();
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(isClosed).toBe(false);
    held[0]?.();
    await closed;
  });

  it("an edge that loses its kit drops what is under way, and blames nobody", async () => {
    const { url, edge, logged } = await open({ forwardWaitMs: 0, metricsToken: "watch" });
    verdict.answer(() => new Promise(() => undefined));
    const before = verdict.taken.length;
    await report(url, newRef());
    await expect.poll(() => verdict.taken.length).toBe(before + 1);
    edge.provision(undefined);
    await expect.poll(() => logged.join()).toContain("bundles were not forwarded");
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(logged.join()).not.toContain("out of reach");
    const { text } = await ask(`${url}/metrics`, { headers: { authorization: "Bearer watch" } });
    expect(text).toContain('octet_edge_bundles_total{outcome="lost"} 1');
    expect(text).not.toContain('outcome="away"');
  });

  it("an end cuts what does not end in the grace, and says how much", async () => {
    const { url, edge, logged } = await open({ forwardWaitMs: 0 });
    verdict.answer(() => new Promise(() => undefined));
    await report(url, newRef());
    await edge.close(50);
    expect(logged.join()).toContain("bundles were not forwarded");
  });
});

describe("without a kit", () => {
  it("an edge is alive, not ready, and takes nothing", async () => {
    const { url, edge } = await open({}, false);
    expect((await ask(`${url}/health`)).body).toMatchObject({ ok: true, role: "edge", provisioned: false });
    expect(await ask(`${url}/ready`)).toMatchObject({ status: 503, body: { reasons: ["edge_unprovisioned"] } });
    const answer = await report(url, newRef());
    expect(answer).toMatchObject({ status: 503, body: { error: "edge_unprovisioned" } });
    expect(answer.headers["retry-after"]).toBe("5");
    edge.provision(kit.at(() => verdict.url));
    expect((await report(url, newRef())).body).toEqual({ ok: true });
    edge.provision(undefined);
    expect((await report(url, newRef())).status).toBe(503);
  });
});

describe("a report that is none", () => {
  const post = async (
    body: string | Buffer,
    headers: Record<string, string> = { "content-type": "application/json" },
  ) => {
    const { url } = await open();
    const before = verdict.taken.length;
    const { status, body: answer } = await ask(`${url}/v1/signals`, { method: "POST", headers, body });
    expect(verdict.taken.length).toBe(before);
    return [status, (answer as { error?: string }).error];
  };

  it.each([
    ["no JSON", "nonsense"],
    ["a list", "[]"],
    ["nothing", ""],
    ["no reference", reportOf("x", { ref: undefined })],
    ["a reference with other characters", reportOf("a b")],
    ["a reference that is too long", reportOf("a".repeat(129))],
    ["no UTF-8", Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])],
    ["deep nesting", reportOf("ref", { x: JSON.parse("[".repeat(20) + "]".repeat(20)) })],
  ])("with %s is refused as missing_fields", async (_, body) => {
    expect(await post(body)).toEqual([400, "missing_fields"]);
  });

  it("of another type, or too large, is refused as such", async () => {
    expect(await post(reportOf("ref"), { "content-type": "application/x-www-form-urlencoded" })).toEqual([
      415,
      "unsupported_media_type",
    ]);
    expect(await post(reportOf("ref"), {})).toEqual([415, "unsupported_media_type"]);
    expect(await post(`{"ref":"${"a".repeat(70_000)}"}`)).toEqual([413, "too_large"]);
    const chunked = { "content-type": "text/plain", "transfer-encoding": "chunked" };
    expect(await post(`{"ref":"${"a".repeat(70_000)}"}`, chunked)).toEqual([413, "too_large"]);
  });
});

it("a report that is too large is refused over HTTP/2 while it is sent, and its stream ends", async () => {
  const { url } = await openTls();
  const session = connectHttp2(url, { ca: authority.bundle });
  try {
    const stream = session.request({ ":method": "POST", ":path": "/v1/signals", "content-type": "text/plain" });
    stream.on("error", () => undefined);
    const status = new Promise((resolve) => stream.once("response", (headers) => resolve(headers[":status"])));
    const closed = new Promise((resolve) => stream.once("close", () => resolve("closed")));
    let text = "";
    stream.on("data", (chunk) => {
      text += String(chunk);
    });
    // It never says that it is done.
    stream.write(Buffer.alloc(70_000, 0x20));
    expect(await status).toBe(413);
    expect(await closed).toBe("closed");
    expect(JSON.parse(text)).toEqual({ error: "too_large" });
  } finally {
    session.destroy();
  }
});

it("the path of the channel is answered over HTTP/2 too, and the edge lives on", async () => {
  const { url, logged } = await openTls();
  const session = connectHttp2(url, { ca: authority.bundle });
  try {
    const stream = session.request({ ":path": "/v1/ws" });
    const [headers] = await once(stream, "response");
    expect(headers[":status"]).toBe(426);
    stream.resume();
    await once(stream, "close");
  } finally {
    session.destroy();
  }
  expect(logged.join()).not.toContain("handler failed");
});

it("a report that breaks off is nobody's failure", async () => {
  const { url, logged } = await open();
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  socket.write("POST /v1/signals HTTP/1.1\r\nhost: edge\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\n{");
  await new Promise((resolve) => setTimeout(resolve, 50));
  socket.destroy();
  expect((await report(url, newRef())).status).toBe(200);
  expect(logged.join()).not.toContain("handler failed");
});

describe("origins", () => {
  it("that are not listed are refused, for reports, pings, preflights and channels", async () => {
    const { url } = await open();
    for (const origin of ["https://evil.example", "null", "http://shop.example", "https://shop.example.evil"]) {
      const headers = { origin };
      const refused = { status: 403, body: { error: "origin_not_allowed" } };
      const answer = await report(url, newRef(), { headers });
      expect(answer).toMatchObject(refused);
      expect(answer.headers["access-control-allow-origin"]).toBeUndefined();
      expect(await ask(`${url}/v1/ping`, { headers })).toMatchObject(refused);
      expect(await ask(`${url}/v1/signals`, { method: "OPTIONS", headers })).toMatchObject(refused);
      await expect(runChannel(`${url.replace("http", "ws")}/v1/ws`, { headers })).rejects.toThrow("refused with 403");
    }
  });

  it("that are listed get their preflight, and readable answers, errors too", async () => {
    const { url } = await open();
    const preflight = await ask(`${url}/v1/signals`, { method: "OPTIONS", headers: { origin: shop } });
    expect(preflight.status).toBe(204);
    expect(preflight.headers).toMatchObject({
      "access-control-allow-origin": shop,
      "access-control-allow-methods": "GET, POST",
      vary: "Origin",
    });
    expect(preflight.headers["access-control-allow-credentials"]).toBeUndefined();
    const refused = await ask(`${url}/v1/signals`, { method: "POST", headers: { origin: shop }, body: "" });
    expect(refused.headers["access-control-allow-origin"]).toBe(shop);
  });

  it("are all allowed by * alone, and the log says so", async () => {
    const { url, logged } = await open({ origins: createOriginRule(["*"]) as OriginRule });
    const answer = await report(url, newRef(), { headers: { origin: "https://any.example" } });
    expect([answer.status, answer.headers["access-control-allow-origin"]]).toEqual([200, "*"]);
    expect(logged.join()).toContain("ALLOWED_ORIGIN=*");
  });
});

describe("a latency channel", () => {
  const digestOf = (ref: string): string => createHash("sha256").update(ref).digest("base64url");

  it("pings, signs what it measured, and joins the report that names it, once", async () => {
    const landmarks = ["wss://two.example/v1/ws"];
    const { url } = await openTls({ landmarks, location: { latitude: 1, longitude: 2 } });
    const ref = newRef();
    const ca = authority.bundle;
    const channel = await runChannel(`${url.replace("http", "ws")}/v1/ws?d=${digestOf(ref)}`, {
      ca,
      headers: { origin: shop },
    });
    expect(channel).toMatchObject({
      hello: { t: "hello", landmarks, v: 1 },
      done: { t: "done", pings: 5 },
      closeCode: 1000,
    });
    const signed = fromBinary(SignedMeasurementSchema, Buffer.from(channel.done?.m ?? "", "base64url"));
    expect(signed.keyId).toBe(kit.signingKeyId);
    const purpose = "octomesh landmark measurement v1";
    expect(isSignedBy(kit.signer.publicKey, purpose, signed.measurement, signed.signature)).toBe(true);
    const measurement = fromBinary(LandmarkMeasurementSchema, signed.measurement);
    expect(measurement).toMatchObject({ landmarkId: "fra-1", position: { latitude: 1, longitude: 2 } });
    expect(Buffer.from(measurement.sessionDigest).toString("base64url")).toBe(digestOf(ref));
    expect(measurement.channel?.roundTripUs).toHaveLength(5);
    const more = { channel: channel.hello.channel };
    await report(url, ref, { more, ca });
    expect(lastBundle()?.latencyChannel).toMatchObject({ sourceAddress: "127.0.0.1" });
    expect(lastBundle()?.latencyChannel?.roundTripUs).toHaveLength(5);
    await report(url, newRef(), { more, ca });
    expect(lastBundle()?.latencyChannel).toBeUndefined();
  });

  it("of another session joins nothing", async () => {
    const { url } = await open();
    const ws = `${url.replace("http", "ws")}/v1/ws`;
    const channel = await runChannel(`${ws}?d=${digestOf(newRef())}`);
    await report(url, newRef(), { more: { channel: channel.hello.channel } });
    expect(lastBundle()?.latencyChannel).toBeUndefined();
    const without = await runChannel(ws);
    expect(without.done?.m).toBeUndefined();
    await report(url, newRef(), { more: { channel: without.hello.channel } });
    expect(lastBundle()?.latencyChannel?.roundTripUs).toHaveLength(5);
  });

  it("that a page breaks off joins its report with what was measured until then", async () => {
    const { url } = await open();
    const socket = new WebSocket(`${url.replace("http", "ws")}/v1/ws`);
    let channel = "";
    await new Promise((resolve) => {
      socket.on("message", (data) => {
        channel = (JSON.parse(String(data)) as { channel: string }).channel;
        socket.send(JSON.stringify({ t: "start", pings: 40 }));
      });
      let pings = 0;
      socket.on("ping", () => {
        pings += 1;
        if (pings === 5) socket.close();
      });
      socket.on("close", resolve);
    });
    await report(url, newRef(), { more: { channel } });
    const measured = lastBundle()?.latencyChannel;
    expect(measured?.roundTripUs.length).toBeGreaterThan(0);
    expect(measured?.roundTripUs.length).toBeLessThan(40);
    if (process.platform === "linux") expect(Number(measured?.connection?.minRttUs)).toBeGreaterThan(0);
  });

  it("that measures still joins the report that overtakes its end, once", async () => {
    const { url } = await open();
    const socket = new WebSocket(`${url.replace("http", "ws")}/v1/ws`);
    let channel = "";
    await new Promise<void>((resolve) => {
      socket.on("message", (data) => {
        channel = (JSON.parse(String(data)) as { channel: string }).channel;
        socket.send(JSON.stringify({ t: "start", pings: 40 }));
      });
      let pings = 0;
      socket.on("ping", () => {
        pings += 1;
        if (pings === 5) resolve();
      });
    });
    await report(url, newRef(), { more: { channel } });
    const trips = lastBundle()?.latencyChannel?.roundTripUs.length ?? 0;
    expect(trips).toBeGreaterThanOrEqual(4);
    expect(trips).toBeLessThan(40);
    socket.close();
    await new Promise((resolve) => socket.on("close", resolve));
    await new Promise((resolve) => setTimeout(resolve, 50));
    await report(url, newRef(), { more: { channel } });
    expect(lastBundle()?.latencyChannel).toBeUndefined();
  });

  it("that answered no ping joins nothing", async () => {
    const { url } = await open();
    const socket = new WebSocket(`${url.replace("http", "ws")}/v1/ws`, { autoPong: false });
    let channel = "";
    await new Promise((resolve) => {
      socket.on("message", (data) => {
        channel = (JSON.parse(String(data)) as { channel: string }).channel;
        socket.send(JSON.stringify({ t: "start", pings: 40 }));
      });
      socket.on("ping", resolve);
    });
    await report(url, newRef(), { more: { channel } });
    expect(lastBundle()?.latencyChannel).toBeUndefined();
    socket.terminate();
  });

  it("ends for whoever does not keep to the protocol", async () => {
    const { url } = await open();
    const ws = `${url.replace("http", "ws")}/v1/ws`;
    for (const start of [
      "nonsense",
      JSON.stringify({ t: "start" }),
      JSON.stringify({ t: "start", pings: -1 }),
      "[1]",
    ]) {
      expect(await runChannel(ws, { start })).toMatchObject({ done: undefined, closeCode: 1008 });
    }
    expect(await runChannel(ws, { start: Buffer.from([1]) })).toMatchObject({ closeCode: 1008 });
    expect(await runChannel(ws, { start: "x".repeat(5_000) })).toMatchObject({ closeCode: 1009 });
    const many = await runChannel(ws, { start: JSON.stringify({ t: "start", pings: 1_000 }) });
    expect(many.done?.pings).toBe(40);
  });

  it("is refused under other paths, with a wrong digest, and by plain requests", async () => {
    const { url } = await open();
    const ws = url.replace("http", "ws");
    await expect(runChannel(`${ws}/v1/other`)).rejects.toThrow("refused with 404");
    await expect(runChannel(`${ws}/v1/ws?d=short`)).rejects.toThrow("refused with 400");
    expect(await ask(`${url}/v1/ws`)).toMatchObject({ status: 426, body: { error: "upgrade_required" } });
  });
});

describe("a landmark", () => {
  it("measures and signs, and has nothing else", async () => {
    const registry = new Registry();
    const { url } = await open({ role: "landmark", signer: kit.signer, metrics: registry }, false);
    const ws = `${url.replace("http", "ws")}/v1/ws`;
    const digest = randomBytes(32).toString("base64url");
    const channel = await runChannel(`${ws}?d=${digest}`);
    expect(channel.done?.m).toMatch(/^[\w-]{100,5700}$/);
    await expect(runChannel(ws)).rejects.toThrow("refused with 400");
    expect((await ask(`${url}/health`)).body).toMatchObject({ role: "landmark", provisioned: true });
    expect((await ask(`${url}/ready`)).status).toBe(200);
    const ping = await ask(`${url}/v1/ping`, { headers: { origin: shop } });
    expect([ping.status, ping.headers["timing-allow-origin"], ping.headers["set-cookie"]]).toEqual([
      204,
      "*",
      undefined,
    ]);
    for (const [method, path] of [
      ["POST", "/v1/signals"],
      ["GET", "/octet-collector.js"],
      ["GET", "/metrics"],
    ] as const) {
      expect((await ask(url + path, { method })).status).toBe(404);
    }
    expect(await registry.metrics()).toContain("octet_edge_channels");
  });
});

describe("one address", () => {
  it("may send so many reports a minute, and open so many channels; a whole /64 counts as one", async () => {
    const trustedProxies = parseCidrList("127.0.0.0/8");
    const { url } = await open({ addressLimit: 3, ...(trustedProxies === undefined ? {} : { trustedProxies }) });
    const from = (address: string) => report(url, newRef(), { headers: { "x-forwarded-for": address } });
    for (let i = 1; i <= 3; i += 1) expect((await from(`2001:db8::${i}`)).status).toBe(200);
    const limited = await from("2001:db8::ffff");
    expect(limited).toMatchObject({ status: 429, body: { error: "rate_limited" } });
    expect(Number(limited.headers["retry-after"])).toBeGreaterThan(0);
    expect((await from("2001:db8:0:1::1")).status).toBe(200);
    const headers = { "x-forwarded-for": "2001:db8::2" };
    await expect(runChannel(`${url.replace("http", "ws")}/v1/ws`, { headers })).rejects.toThrow("refused with 429");
  });
});

describe("the other answers", () => {
  it("of an edge are closed to whoever has no business with them", async () => {
    const { url } = await open({ metricsToken: "secret-of-the-metrics" });
    expect((await ask(`${url}/metrics`)).status).toBe(404);
    expect((await ask(`${url}/metrics`, { headers: { authorization: "Bearer wrong" } })).status).toBe(404);
    const metrics = await ask(`${url}/metrics`, { headers: { authorization: "Bearer secret-of-the-metrics" } });
    expect(metrics.text).toContain("octet_edge_queue_bundles");
    expect((await ask(`${url}/../../package.json`)).status).toBe(404);
    expect((await ask(`${url}/v1/signals`)).status).toBe(405);
    expect((await ask(`${url}/health`, { method: "DELETE" })).status).toBe(404);
    const open_ = await open();
    expect((await ask(`${open_.url}/metrics`)).status).toBe(200);
    expect((await ask(`${open_.url}/metrics`, { headers: { via: "1.1 proxy" } })).status).toBe(404);
  });

  it("never name an address in the log, but with EDGE_DEBUG", async () => {
    const quiet = await open();
    await report(quiet.url, newRef(), { headers: { "user-agent": "Tell-Tale/1" } });
    expect(quiet.logged.join("\n")).not.toMatch(/127\.0\.0\.1|Tell-Tale|sess_/);
    const loud = await open({ debug: true });
    await report(loud.url, newRef());
    expect(loud.logged.join("\n")).toContain('"address":"127.0.0.1"');
  });
});

import http from "node:http";
import http2 from "node:http2";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { ArtifactService } from "@octomesh/proto/octomesh/model/v1/artifact_service_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { CallerKind, Role, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { callOf } from "./call-context.ts";
import { Reason, reasonOf } from "./errors.ts";
import { newId } from "./ids.ts";
import type { CreateService } from "./service.ts";
import { startTestMesh, type TestMesh } from "./test/mesh-fixture.ts";

const org = newId("org");
const origin = "https://app.example.com";
let mesh: TestMesh;
let key: string;

/** What the service below was called with, and what it is to wait for. */
const seen: { params: Record<string, string>[]; aborted: boolean[] } = { params: [], aborted: [] };
let entered = (): void => undefined;
let go: Promise<void> = Promise.resolve();

const create: CreateService = async () => ({
  start: async () => undefined,
  stop: async () => undefined,
  http: [
    {
      method: ArtifactService.method.downloadArtifact,
      async handle(_call, _request, response, params) {
        seen.params.push({ ...params });
        response.end("bytes");
      },
    },
  ],
  routes(router) {
    router.service(ArtifactService, {});
    router.service(ModelService, {
      async getModel(request, context) {
        entered();
        await go;
        if (request.id === "until-gone") {
          await new Promise((resolve) => context.signal.addEventListener("abort", resolve, { once: true }));
        }
        seen.aborted.push(context.signal.aborted || callOf(context).signal.aborted);
        return { id: request.id };
      },
    });
    router.service(DeviceService, {
      async getDevice(request) {
        return { id: request.id };
      },
      async *watchDesiredState(request, context) {
        for (let i = 1; ; i += 1) {
          yield { deviceId: request.id, etag: String(i), models: [] };
          if (i < 3) continue;
          await new Promise((resolve) => context.signal.addEventListener("abort", resolve, { once: true }));
          return;
        }
      },
    });
  },
});

beforeAll(async () => {
  mesh = await startTestMesh({ services: { rollout: create }, environment: { OCTOMESH_CORS_ORIGINS: origin } });
  key = mesh.identity.issue({
    prefix: "edg_live_",
    kind: CallerKind.API_KEY,
    orgId: org,
    scopes: [Scope.MODELS_READ, Scope.MODELS_WRITE],
  }).token;
});

afterAll(() => mesh.stop());

beforeEach(() => {
  seen.params.length = 0;
  seen.aborted.length = 0;
  mesh.logged.length = 0;
  go = Promise.resolve();
});

const url = (path: string) => `${mesh.publicUrl("rollout")}${path}`;
const authorization = () => `Bearer ${key}`;
const lines = (text: string) => mesh.logged.filter((line) => line.includes(text));

async function ask(path: string, init: RequestInit = {}): Promise<[number, unknown]> {
  const answer = await fetch(url(path), { ...init, headers: { authorization: authorization(), ...init.headers } });
  const text = await answer.text();
  return [answer.status, text === "" ? "" : (JSON.parse(text) as { code?: string }).code];
}

describe("REST", () => {
  test("refuses a path that is not well encoded", async () => {
    expect(await ask("/api/v1/models/%zz")).toEqual([400, "REQUEST_MALFORMED"]);
    expect(await ask("/api/v1/models/%c3%28")).toEqual([400, "REQUEST_MALFORMED"]);
  });

  test("refuses parameters beside a body that is the whole request", async () => {
    const init = { method: "POST", body: '{"name":"x"}', headers: { "content-type": "application/json" } };
    expect(await ask("/api/v1/models?name=y", init)).toEqual([400, "REQUEST_MALFORMED"]);
  });

  test("takes only JSON for a body", async () => {
    const post = (type: string, body: string) =>
      ask("/api/v1/models", { method: "POST", body, headers: { "content-type": type } });
    expect(await post("text/plain", '{"name":"x"}')).toEqual([400, "REQUEST_MALFORMED"]);
    expect(await post("application/x-www-form-urlencoded", "name=x")).toEqual([400, "REQUEST_MALFORMED"]);
    expect((await post("application/json; charset=utf-8", '{"name":"x"}'))[0]).toBe(501);
  });

  test("answers HEAD with what GET would, without the body", async () => {
    const get = await fetch(url("/api/v1/models/m"), { headers: { authorization: authorization() } });
    const head = await fetch(url("/api/v1/models/m"), { method: "HEAD", headers: { authorization: authorization() } });
    expect([head.status, head.headers.get("content-type"), await head.text()]).toEqual([200, "application/json", ""]);
    const names = (answer: Response) => [...answer.headers.keys()].filter((name) => name !== "keep-alive");
    expect(names(head)).toEqual(names(get));
    expect(head.headers.get("content-length")).toBe(get.headers.get("content-length"));
    expect((await fetch(url("/api/v1/models/m"), { method: "HEAD" })).status).toBe(401);
  });
});

describe("HTTP that is no rpc", () => {
  test("gets the variables of its path only within their bounds", async () => {
    const id = newId("art");
    const answer = await fetch(url(`/api/v1/artifacts/${id}/content`), { headers: { authorization: authorization() } });
    expect(await answer.text()).toBe("bytes");
    expect(seen.params).toEqual([{ id }]);
    for (const bad of ["..%2f..%2fetc%2fpasswd", "art_x", "%00", `${id}%00`]) {
      expect(await ask(`/api/v1/artifacts/${bad}/content`)).toEqual([400, "VALIDATION_FAILED"]);
    }
    expect(seen.params).toHaveLength(1);
    // Authorised before validated.
    expect((await fetch(url("/api/v1/artifacts/art_x/content"))).status).toBe(401);
  });

  test("is counted and logged as every call", async () => {
    await fetch(url(`/api/v1/artifacts/${newId("art")}/content`), { headers: { authorization: authorization() } });
    await fetch(url(`/api/v1/artifacts/${newId("art")}/content`));
    const admin = `http://127.0.0.1:${mesh.service("rollout").ports.admin}/metrics`;
    const metrics = await (await fetch(admin)).text();
    expect(metrics).toMatch(/octomesh_rpc_calls_total\{[^}]*DownloadArtifact[^}]*code="ok"[^}]*\} \d/);
    expect(metrics).toMatch(/octomesh_rpc_calls_total\{[^}]*DownloadArtifact[^}]*code="unauthenticated"[^}]*\} \d/);
    expect(lines("ArtifactService/DownloadArtifact").length).toBeGreaterThanOrEqual(2);
  });
});

describe("what nobody serves", () => {
  test.each(["application/grpc", "application/grpc+proto", "application/grpc-web+proto", "application/grpc-web-text"])(
    "is UNIMPLEMENTED for %s",
    async (type) => {
      const answer = await fetch(url("/octomesh.no.v1.Service/Method"), {
        method: "POST",
        headers: { "content-type": type },
      });
      expect([answer.status, answer.headers.get("grpc-status")]).toEqual([200, "12"]);
    },
  );

  test("is 404 for others", async () => {
    expect(await ask("/octomesh.no.v1.Service/Method", { method: "POST" })).toEqual([404, "METHOD_NOT_FOUND"]);
    expect(await ask("/api/v1")).toEqual([404, "METHOD_NOT_FOUND"]);
    expect(await ask("//evil.example/api/v1/models")).toEqual([404, "METHOD_NOT_FOUND"]);
  });
});

describe("a stream", () => {
  const devices = (httpVersion: "1.1" | "2" = "2") =>
    createClient(
      DeviceService,
      httpVersion === "2"
        ? createGrpcTransport({ baseUrl: mesh.publicUrl("rollout") })
        : createConnectTransport({ baseUrl: mesh.publicUrl("rollout"), httpVersion }),
    );

  test("ends with the token that opened it", async () => {
    const id = newId("dev");
    const token = await mesh.identity.sign({ kind: "device", orgId: org, id, expiresInS: 2 });
    const etags: string[] = [];
    let error: ConnectError | undefined;
    try {
      const headers = { authorization: `Bearer ${token}` };
      for await (const state of devices().watchDesiredState({ id }, { headers })) etags.push(state.etag);
    } catch (thrown) {
      error = ConnectError.from(thrown);
    }
    expect(etags).toEqual(["1", "2", "3"]);
    expect([error?.code, reasonOf(error)]).toEqual([Code.Unauthenticated, Reason.CREDENTIAL_EXPIRED]);
  });

  test.each(["1.1", "2"] as const)("is over when its caller goes away, over HTTP/%s, and no fault", async (version) => {
    const id = newId("dev");
    const token = await mesh.identity.sign({ kind: "device", orgId: org, id });
    const stop = new AbortController();
    const options = { headers: { authorization: `Bearer ${token}` }, signal: stop.signal };
    const stream = devices(version).watchDesiredState({ id }, options)[Symbol.asyncIterator]();
    await stream.next();
    stop.abort();
    await expect
      .poll(() => lines("DeviceService/WatchDesiredState").map((line) => JSON.parse(line).code))
      .toEqual(["canceled"]);
    expect(lines("failed outside")).toEqual([]);
    expect(lines('"level":50')).toEqual([]);
  });

  test("may be read by a page of a listed origin", async () => {
    const id = newId("dev");
    const token = await mesh.identity.sign({ kind: "device", orgId: org, id });
    const answer = await new Promise<http.IncomingMessage>((resolve, reject) => {
      const request = http.request(
        url("/octomesh.device.v1.DeviceService/WatchDesiredState"),
        {
          method: "POST",
          headers: { "content-type": "application/connect+json", authorization: `Bearer ${token}`, origin },
        },
        resolve,
      );
      request.on("error", reject);
      const message = Buffer.from(JSON.stringify({ id }));
      const head = Buffer.alloc(5);
      head.writeUInt32BE(message.length, 1);
      request.end(Buffer.concat([head, message]));
    });
    expect(answer.headers["access-control-allow-origin"]).toBe(origin);
    answer.destroy();
  });
});

test("an HTTP/2 caller that breaks off a unary call is no fault either", async () => {
  const inside = new Promise<void>((resolve) => {
    entered = resolve;
  });
  const session = http2.connect(mesh.publicUrl("rollout"));
  const stream = session.request({ ":path": "/api/v1/models/until-gone", authorization: authorization() });
  stream.on("error", () => undefined);
  stream.end();
  await inside;
  stream.close(http2.constants.NGHTTP2_CANCEL);
  await expect.poll(() => seen.aborted).toEqual([true]);
  session.destroy();
  await expect.poll(() => lines("ModelService/GetModel").length).toBe(1);
  expect(lines("failed outside")).toEqual([]);
  expect(lines('"level":50')).toEqual([]);
});

test("a refusal of a foreign device is told, without anything personal", async () => {
  const id = newId("dev");
  const token = await mesh.identity.sign({ kind: "device", orgId: org, id });
  const answer = await fetch(url(`/api/v1/devices/${newId("dev")}`), { headers: { authorization: `Bearer ${token}` } });
  expect(answer.status).toBe(403);
  const [told] = lines('"msg":"denied"').map((line) => JSON.parse(line));
  expect(Object.keys(told).sort()).toEqual(
    [
      "action",
      "caller",
      "caller_id",
      "hostname",
      "level",
      "method",
      "msg",
      "org_id",
      "pid",
      "reason",
      "request_id",
      "time",
    ].sort(),
  );
  expect(told).toMatchObject({ caller: "device", caller_id: id, org_id: org });
});

test("a drain ends streams, and lets a unary call under way finish unharmed", async () => {
  const own = await startTestMesh({ services: { rollout: create } });
  const id = newId("dev");
  const member = await own.identity.sign({ kind: "session", orgId: org, id: newId("usr"), role: Role.MEMBER });
  const device = await own.identity.sign({ kind: "device", orgId: org, id });
  const baseUrl = own.publicUrl("rollout");
  let release = (): void => undefined;
  go = new Promise((resolve) => {
    release = resolve;
  });
  const inside = new Promise<void>((resolve) => {
    entered = resolve;
  });
  const unary = createClient(ModelService, createConnectTransport({ baseUrl, httpVersion: "1.1" })).getModel(
    { id: "m" },
    { headers: { authorization: `Bearer ${member}` } },
  );
  await inside;
  const stream = createClient(DeviceService, createGrpcTransport({ baseUrl }))
    .watchDesiredState({ id }, { headers: { authorization: `Bearer ${device}` } })
    [Symbol.asyncIterator]();
  for (let i = 0; i < 3; i += 1) await stream.next();
  const stopped = own.stop();
  const end = await stream.next().then(
    () => undefined,
    (error) => ConnectError.from(error),
  );
  expect(reasonOf(end)).toBe(Reason.SERVICE_UNAVAILABLE);
  release();
  expect((await unary).id).toBe("m");
  expect(seen.aborted).toEqual([false]);
  await stopped;
});

import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { CallerKind, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { callOf } from "./call-context.ts";
import { createSiblingClients } from "./client.ts";
import { fail, Reason } from "./errors.ts";
import { newId } from "./ids.ts";
import { readRuntimeConfig } from "./runtime-config.ts";
import type { CreateService } from "./service.ts";
import { noTelemetry, openTelemetry } from "./telemetry.ts";
import { type CollectedSpan, type CollectorStub, startCollector } from "./test/collector-stub.ts";
import { startTestMesh, type TestMesh } from "./test/mesh-fixture.ts";
import { createToyRollout } from "./test/toy-rollout.ts";
import { defaultTrustDomain, openDevelopmentAuthority } from "./tls.ts";

const org = newId("org");
const device = newId("dev");
const strangersTrace = "4bf92f3577b34da6a3ce929d0e0e4736";
const strangersParent = `00-${strangersTrace}-00f067aa0ba902b7-01`;

const getDevice = "octomesh.device.v1.DeviceService/GetDevice";
const watchDesiredState = "octomesh.device.v1.DeviceService/WatchDesiredState";
const resolveDesiredStates = "octomesh.rollout.v1.AssignmentService/ResolveDesiredStates";
const resolveCredential = "octomesh.identity.v1.CredentialService/ResolveCredential";

/** A registry that asks rollout, in a call and in the middle of a stream. */
const createToyRegistry: CreateService = async (runtime) => {
  const rollout = runtime.client(AssignmentService);
  const resolve = (orgId: string, deviceId: string) =>
    rollout.resolveDesiredStates({ orgId, devices: [{ deviceId, groupIds: [] }] });
  return {
    http: [],
    start: async () => undefined,
    stop: async () => undefined,
    routes(router) {
      router.service(DeviceService, {
        async getDevice(request, ctx) {
          const { orgId } = callOf(ctx);
          if (request.id !== device) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such device", {});
          await resolve(orgId, request.id);
          return { id: request.id, orgId };
        },
        async *watchDesiredState(request, ctx) {
          yield { deviceId: request.id, etag: "1", models: [] };
          await resolve(callOf(ctx).orgId, request.id);
          yield { deviceId: request.id, etag: "2", models: [] };
        },
      });
    },
  };
};

let collector: CollectorStub;
let mesh: TestMesh;
let key: { token: string; id: string };

beforeAll(async () => {
  // The SDK reads it from the process: spans are sent as soon as a test can ask for them.
  vi.stubEnv("OTEL_BSP_SCHEDULE_DELAY", "50");
  collector = await startCollector();
  mesh = await startTestMesh({
    services: { rollout: createToyRollout(), "device-registry": createToyRegistry },
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: `${collector.url}/` },
  });
  key = keyOf(mesh);
});

afterAll(async () => {
  await mesh.stop();
  await collector.close();
  vi.unstubAllEnvs();
});

function keyOf(of: TestMesh): { token: string; id: string } {
  const scopes = [Scope.DEVICES_READ, Scope.MODELS_READ];
  return of.identity.issue({ prefix: "edg_live_", kind: CallerKind.API_KEY, orgId: org, scopes });
}

function devicesOf(of: TestMesh) {
  const baseUrl = of.publicUrl("device-registry");
  return createClient(DeviceService, createConnectTransport({ baseUrl, httpVersion: "1.1" }));
}

/** The line that `observe` logged of a call with that request id. */
function lineOf(of: TestMesh, method: string, requestId: string): Record<string, unknown> | undefined {
  return of.logged
    .map((line) => JSON.parse(line) as Record<string, unknown>)
    .find((line) => line.method === method && line.request_id === requestId && "ms" in line);
}

/** Waits for the spans of a trace, which are sent in batches. */
async function spansOf(traceId: unknown, count: number): Promise<readonly CollectedSpan[]> {
  await vi.waitFor(() => expect(collector.spans.filter((span) => span.traceId === traceId)).toHaveLength(count), {
    timeout: 20_000,
    interval: 50,
  });
  return collector.spans.filter((span) => span.traceId === traceId);
}

function spanOf(spans: readonly CollectedSpan[], name: string, kind: "server" | "client"): CollectedSpan {
  const found = spans.filter((span) => span.name === name && span.kind === kind);
  expect(found).toHaveLength(1);
  return found[0] as CollectedSpan;
}

describe("a call that crosses services", () => {
  test("is one trace: each service's server span, and client spans between them", async () => {
    const headers = {
      authorization: `Bearer ${key.token}`,
      "x-request-id": "request-one-trace",
      traceparent: strangersParent,
      tracestate: "vendor=strangers-secret",
      baggage: "user=somebody",
    };
    await devicesOf(mesh).getDevice({ id: device }, { headers });
    const line = lineOf(mesh, getDevice, "request-one-trace");
    const spans = await spansOf(line?.trace_id, 5);

    const root = spanOf(spans, getDevice, "server");
    const asked = spanOf(spans, resolveDesiredStates, "client");
    const answered = spanOf(spans, resolveDesiredStates, "server");
    const lookUp = spanOf(spans, resolveCredential, "client");
    const lookedUp = spanOf(spans, resolveCredential, "server");
    expect([root.parentSpanId, asked.parentSpanId, answered.parentSpanId]).toEqual([
      undefined,
      root.spanId,
      asked.spanId,
    ]);
    expect([lookUp.parentSpanId, lookedUp.parentSpanId]).toEqual([root.spanId, lookUp.spanId]);
    expect([root, asked, answered, lookUp, lookedUp].map((span) => span.service)).toEqual([
      "octomesh-device-registry",
      "octomesh-device-registry",
      "octomesh-rollout",
      "octomesh-device-registry",
      "octomesh-identity",
    ]);
    expect(root.attributes).toEqual({
      "rpc.system.name": "connectrpc",
      "rpc.method": getDevice,
      "octomesh.caller.kind": "api_key",
    });
    expect(asked.attributes).toEqual({
      "rpc.system.name": "grpc",
      "rpc.method": resolveDesiredStates,
      "server.address": "rollout",
      "rpc.status_code": "OK",
    });
    expect(answered.attributes).toEqual({
      "rpc.system.name": "grpc",
      "rpc.method": resolveDesiredStates,
      "rpc.status_code": "OK",
      "octomesh.caller.kind": "peer",
    });
  });

  test("keeps its trace in the middle of a stream", async () => {
    const token = await mesh.identity.sign({ kind: "device", orgId: org, id: device });
    const headers = { authorization: `Bearer ${token}`, "x-request-id": "request-stream" };
    const stream = devicesOf(mesh).watchDesiredState({ id: device }, { headers });
    const etags: string[] = [];
    for await (const state of stream) etags.push(state.etag);
    expect(etags).toEqual(["1", "2"]);
    await vi.waitFor(() => expect(lineOf(mesh, watchDesiredState, "request-stream")).toBeDefined());
    const { trace_id: traceId } = lineOf(mesh, watchDesiredState, "request-stream") ?? {};
    // The set of keys that device tokens are verified with is fetched in the first call that needs it.
    const spans = (await spansOf(traceId, 5)).filter((span) => !span.name.endsWith("/GetJsonWebKeySet"));
    const asked = spanOf(spans, resolveDesiredStates, "client");
    expect(asked.parentSpanId).toBe(spanOf(spans, watchDesiredState, "server").spanId);
    expect(spanOf(spans, resolveDesiredStates, "server").parentSpanId).toBe(asked.spanId);
  });

  test("keeps nobody's span for the next call", async () => {
    const headers = (id: string) => ({ authorization: `Bearer ${key.token}`, "x-request-id": id });
    const ids = Array.from({ length: 8 }, (_, index) => `request-side-by-side-${index}`);
    await Promise.all(ids.map((id) => devicesOf(mesh).getDevice({ id: device }, { headers: headers(id) })));
    const traces = ids.map((id) => lineOf(mesh, getDevice, id)?.trace_id);
    expect(new Set(traces).size).toBe(ids.length);
    for (const traceId of traces) {
      const spans = await spansOf(traceId, 3);
      const asked = spanOf(spans, resolveDesiredStates, "client");
      expect(asked.parentSpanId).toBe(spanOf(spans, getDevice, "server").spanId);
    }
  });

  test("says how it ended: a refusal is no error of the service, a fault is, and neither shows its text", async () => {
    const headers = { authorization: `Bearer ${key.token}` };
    const absent = devicesOf(mesh).getDevice(
      { id: newId("dev") },
      { headers: { ...headers, "x-request-id": "request-absent" } },
    );
    await expect(absent).rejects.toMatchObject({ code: Code.NotFound });
    const baseUrl = mesh.publicUrl("rollout");
    const fault = await fetch(`${baseUrl}/api/v1/models/boom`, {
      headers: { ...headers, "x-request-id": "request-fault" },
    });
    expect(fault.status).toBe(500);
    const [refused] = await spansOf(lineOf(mesh, getDevice, "request-absent")?.trace_id, 1);
    expect([refused?.isError, refused?.attributes]).toEqual([
      false,
      {
        "rpc.system.name": "connectrpc",
        "rpc.method": getDevice,
        "rpc.status_code": "not_found",
        "octomesh.reason": "RESOURCE_NOT_FOUND",
        "octomesh.caller.kind": "api_key",
      },
    ]);
    const getModel = "octomesh.model.v1.ModelService/GetModel";
    const faulty = await spansOf(lineOf(mesh, getModel, "request-fault")?.trace_id, 3);
    expect(spanOf(faulty, getModel, "server")).toMatchObject({
      isError: true,
      attributes: { "rpc.status_code": "internal", "error.type": "internal", "octomesh.reason": "INTERNAL" },
    });
  });

  test("is traced as well where it is no rpc", async () => {
    const path = `/api/v1/artifacts/${newId("art")}/content`;
    const headers = { authorization: `Bearer ${keyOf(mesh).token}`, "x-request-id": "request-download" };
    const answer = await fetch(`${mesh.publicUrl("rollout")}${path}`, { headers });
    expect(await answer.text()).toBe("first last");
    const method = "octomesh.model.v1.ArtifactService/DownloadArtifact";
    const spans = await spansOf(lineOf(mesh, method, "request-download")?.trace_id, 3);
    const root = spanOf(spans, method, "server");
    expect(root.attributes).toEqual({
      "http.request.method": "GET",
      "http.route": "/api/v1/artifacts/{id}/content",
      "rpc.method": method,
      "octomesh.caller.kind": "api_key",
    });
    expect(spanOf(spans, resolveCredential, "client").parentSpanId).toBe(root.spanId);
  });
});

describe("what a span holds", () => {
  test("is no credential, no identifier and nothing of the caller's headers", async () => {
    const headers = { authorization: `Bearer ${key.token}`, "x-request-id": "request-private" };
    await devicesOf(mesh).getDevice({ id: device }, { headers });
    await spansOf(lineOf(mesh, getDevice, "request-private")?.trace_id, 3);
    const sent = collector.bodies.join("\n");
    for (const text of [key.token, key.id, org, device, "request-private", "127.0.0.1", "strangers-secret", "somebody"])
      expect(sent).not.toContain(text);
  });

  test("is not the services' own book-keeping, of which there is no end", () => {
    expect(mesh.identity.acknowledged.size).toBe(3);
    expect(collector.spans.filter((span) => span.name.endsWith("/AcknowledgeRevocations"))).toEqual([]);
  });

  test("names the service, and each start of it apart", () => {
    const instances = new Map(collector.spans.map((span) => [span.service, span.resource["service.instance.id"]]));
    expect([...instances.keys()].sort()).toEqual(["octomesh-device-registry", "octomesh-identity", "octomesh-rollout"]);
    expect(new Set(instances.values()).size).toBe(3);
  });
});

describe("whose traceparent counts", () => {
  test("a stranger's is a link: it neither chooses the trace nor has it sampled", async () => {
    expect(collector.spans.filter((span) => span.traceId === strangersTrace)).toEqual([]);
    const { trace_id: traceId } = lineOf(mesh, getDevice, "request-one-trace") ?? {};
    const root = collector.spans.find((span) => span.traceId === traceId && span.name === getDevice);
    expect(root?.links).toEqual([strangersTrace]);
  });

  test("a peer's is the parent, and its decision holds where the service itself would not sample", async () => {
    const own = await startCollector();
    const quiet = await startTestMesh({
      services: { rollout: createToyRollout(), "device-registry": createToyRegistry },
      environment: { OTEL_EXPORTER_OTLP_ENDPOINT: own.url, OTEL_TRACES_SAMPLER: "parentbased_always_off" },
    });
    const authority = await openDevelopmentAuthority(quiet.stateDir, defaultTrustDomain);
    const peer = createSiblingClients({
      identity: await authority.issue("device-registry"),
      trustDomain: defaultTrustDomain,
      urlOf: (sibling) => quiet.meshUrl(sibling),
    });
    const stranger = { authorization: `Bearer ${keyOf(quiet).token}`, traceparent: strangersParent };
    await devicesOf(quiet).getDevice({ id: device }, { headers: stranger });
    const peers = `00-${"a1".repeat(16)}-${"b2".repeat(8)}-01`;
    await peer
      .client("rollout", AssignmentService)
      .resolveDesiredStates(
        { orgId: org, devices: [{ deviceId: device, groupIds: [] }] },
        { headers: { traceparent: peers } },
      );
    peer.close();
    await quiet.stop();
    expect(own.spans).toMatchObject([
      { name: resolveDesiredStates, kind: "server", traceId: "a1".repeat(16), parentSpanId: "b2".repeat(8), links: [] },
    ]);
    await own.close();
  });
});

describe("traces that are off", () => {
  test("leave no trace: no id in the log, no header between services", async () => {
    const headers: Headers[] = [];
    const off = await startTestMesh({
      services: {
        rollout: async () => ({
          http: [],
          start: async () => undefined,
          stop: async () => undefined,
          routes(router) {
            router.service(AssignmentService, {
              resolveDesiredStates(_request, ctx) {
                headers.push(ctx.requestHeader);
                return { cursor: "1", desiredStates: [] };
              },
            });
          },
        }),
        "device-registry": createToyRegistry,
      },
    });
    const given = {
      authorization: `Bearer ${keyOf(off).token}`,
      "x-request-id": "request-off",
      traceparent: strangersParent,
    };
    await devicesOf(off).getDevice({ id: device }, { headers: given });
    await off.stop();
    expect(headers.map((each) => each.get("traceparent"))).toEqual([null]);
    expect(lineOf(off, getDevice, "request-off")).toMatchObject({ code: "ok" });
    expect(lineOf(off, getDevice, "request-off")).not.toHaveProperty("trace_id");
  });

  test("are nothing at all", async () => {
    const log = pino({ level: "silent" });
    expect(await openTelemetry({ service: "rollout", tracing: undefined, log })).toBe(noTelemetry);
    expect(noTelemetry.clientSpans("rollout")).toBeUndefined();
  });
});

describe("the end of a service", () => {
  async function openOne(own: CollectorStub, logged: string[], closeTimeoutMs?: number) {
    const log = pino({ level: "warn" }, { write: (line: string) => void logged.push(line) });
    const telemetry = await openTelemetry({
      service: "verdict",
      tracing: { url: `${own.url}/v1/traces`, sampler: "parentbased_always_on", ratio: 1 },
      log,
      closeTimeoutMs,
    });
    telemetry
      .serverSpan({ method: DeviceService.method.getDevice, header: new Headers(), connection: undefined })
      .end({ code: undefined });
    return telemetry;
  }

  test("sends the spans that are still here", async () => {
    const own = await startCollector();
    const logged: string[] = [];
    await (await openOne(own, logged)).close();
    expect(own.spans).toMatchObject([{ name: getDevice, service: "octomesh-verdict" }]);
    expect(logged).toEqual([]);
    await own.close();
  });

  test("does not wait for a collector that never answers", async () => {
    const own = await startCollector();
    own.behave("silence");
    const logged: string[] = [];
    await (await openOne(own, logged, 50)).close();
    expect(logged.join("")).toContain("the last traces were given up");
    await own.close();
  });

  test("says in the log that the collector takes none", async () => {
    const own = await startCollector();
    own.behave("refuse");
    const logged: string[] = [];
    await (await openOne(own, logged)).close();
    expect(logged).toHaveLength(1);
    expect(JSON.parse(logged[0] ?? "")).toMatchObject({ msg: "traces were not delivered", spans: 1 });
    await own.close();
  });
});

describe("the configuration of traces", () => {
  const tracing = (environment: Record<string, string>) => readRuntimeConfig("rollout", environment).tracing;
  const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: "https://collector.example.com/otlp/" };

  test("is off unless a collector is named, or where the SDK is disabled", () => {
    expect(tracing({})).toBeUndefined();
    expect(tracing({ OTEL_EXPORTER_OTLP_ENDPOINT: "" })).toBeUndefined();
    expect(tracing({ OTEL_TRACES_SAMPLER: "always_on" })).toBeUndefined();
    expect(tracing({ ...endpoint, OTEL_SDK_DISABLED: "true" })).toBeUndefined();
  });

  test("finds traces below the collector's URL, or where they are said to go", () => {
    const defaults = { sampler: "parentbased_always_on", ratio: 1 };
    expect(tracing(endpoint)).toEqual({ url: "https://collector.example.com/otlp/v1/traces", ...defaults });
    const own = { ...endpoint, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "http://127.0.0.1:4318/take/" };
    expect(tracing(own)).toEqual({ url: "http://127.0.0.1:4318/take/", ...defaults });
  });

  test("takes a sampler and its share, and refuses what is none", () => {
    const sampled = { ...endpoint, OTEL_TRACES_SAMPLER: "parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG: "0.25" };
    expect(tracing(sampled)).toMatchObject({ sampler: "parentbased_traceidratio", ratio: 0.25 });
    for (const [name, value] of [
      ["OTEL_TRACES_SAMPLER", "sometimes"],
      ["OTEL_TRACES_SAMPLER_ARG", "1.5"],
      ["OTEL_TRACES_SAMPLER_ARG", "-1"],
      ["OTEL_TRACES_SAMPLER_ARG", "many"],
      ["OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"],
      ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://collector"],
    ] as const) {
      expect(() => tracing({ ...endpoint, [name]: value }), `${name}=${value}`).toThrow(name);
    }
  });
});

test("an error of a sibling is one on the client's span too", async () => {
  const down = await startCollector();
  const lonely = await startTestMesh({
    services: { "device-registry": createToyRegistry },
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: down.url },
  });
  const headers = { authorization: `Bearer ${keyOf(lonely).token}` };
  const error = await devicesOf(lonely)
    .getDevice({ id: device }, { headers })
    .catch((each: unknown) => ConnectError.from(each));
  expect(error).toMatchObject({ code: Code.Unavailable });
  await lonely.stop();
  const span = spanOf(down.spans, resolveDesiredStates, "client");
  expect([span.isError, span.attributes["rpc.status_code"], span.attributes["error.type"]]).toEqual([
    true,
    "UNAVAILABLE",
    "UNAVAILABLE",
  ]);
  await down.close();
});

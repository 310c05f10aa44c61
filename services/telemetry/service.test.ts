import { create, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { newId } from "@octomesh/mesh/ids";
import type { CreateService } from "@octomesh/mesh/service";
import { openTestDatabase } from "@octomesh/mesh/test/database-fixture";
import { startTestMesh } from "@octomesh/mesh/test/mesh-fixture";
import { Device_State as DeviceState } from "@octomesh/proto/octomesh/device/v1/device_pb";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { CallerKind, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { Rollout_State as State } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { ReportTelemetryRequestSchema } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { afterAll, describe, expect, it, vi } from "vitest";
import { createService } from "./service.ts";
import type { TelemetrySchema } from "./store.ts";

const migrations = new URL("./migrations/", import.meta.url);
const { url } = await openTestDatabase<TelemetrySchema>({ service: "telemetry", migrations });

const orgId = newId("org");
const [deviceId, modelId, versionId, rolloutId] = [newId("dev"), newId("mdl"), newId("mvr"), newId("rol")];
const waitingId = newId("dev");

/** A rollout service with one rollout, to everybody. */
const createRollout: CreateService = async () => ({
  http: [],
  start: async () => undefined,
  stop: async () => undefined,
  routes(router) {
    router.service(AssignmentService, {
      async *watchRolloutDefinitions(_request, { signal }) {
        const plan = { stages: [{ percentageThousandths: 100_000 }] };
        const rollout = { id: rolloutId, orgId, modelId, versionId, salt: "s", state: State.RUNNING, plan };
        yield { cursor: "1", rollouts: [{ ...rollout, percentageThousandths: 100_000 }], caughtUp: true };
        await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
      },
    });
  },
});

/** A device registry in which one device awaits approval. */
const createRegistry: CreateService = async () => ({
  http: [],
  start: async () => undefined,
  stop: async () => undefined,
  routes(router) {
    router.service(DeviceService, {
      getDevice: ({ id }) => ({ id, state: id === waitingId ? DeviceState.AWAITING_APPROVAL : DeviceState.ACTIVE }),
    });
  },
});

const mesh = await startTestMesh({
  services: { rollout: createRollout, telemetry: createService, "device-registry": createRegistry },
  environment: { OCTOMESH_TELEMETRY_DATABASE_URL: url },
});
afterAll(() => mesh.stop());

const origin = mesh.publicUrl("telemetry");
const deviceToken = await mesh.identity.sign({ kind: "device", orgId, id: deviceId });
const reader = mesh.identity.issue({
  prefix: "edg_live_",
  kind: CallerKind.API_KEY,
  orgId,
  scopes: [Scope.TELEMETRY_READ],
});
const stranger = mesh.identity.issue({
  prefix: "edg_live_",
  kind: CallerKind.API_KEY,
  orgId,
  scopes: [Scope.MODELS_READ],
});

const json = "application/json";

function report(body: unknown, path = `/api/v1/devices/${deviceId}/telemetry`, token = deviceToken): Promise<Response> {
  const headers = { authorization: `Bearer ${token}`, "content-type": json };
  return fetch(`${origin}${path}`, { method: "POST", headers, body: JSON.stringify(body) });
}

function batch(sequence: number, more: Record<string, unknown> = {}) {
  const latency = {
    measure_time: new Date().toISOString(),
    model_id: modelId,
    version_id: versionId,
    operation: "OPERATION_INFERENCE",
    milliseconds: [10, 20, 30],
  };
  return { boot_id: "boot", sequence, reports: [{ latency: { ...latency, ...more } }] };
}

async function answerOf(response: Promise<Response>): Promise<[number, Record<string, unknown>]> {
  const settled = await response;
  return [settled.status, (await settled.json()) as Record<string, unknown>];
}

describe("telemetry, over its own listeners", () => {
  it("takes a device's reports over REST once it has heard of the rollouts, and each once", async () => {
    await vi.waitFor(async () => expect((await report(batch(1))).status).toBe(200), { timeout: 10_000 });
    expect(await answerOf(report(batch(1)))).toEqual([200, { accepted: 1, duplicate: true, dropped_fields: 0 }]);
  });

  it("lets a key with the scope read what was reported, by cohort", async () => {
    const path = `/api/v1/telemetry/latency?filter.model_id=${modelId}&filter.width=3600s`;
    const headers = { authorization: `Bearer ${reader.token}` };
    const [status, body] = await answerOf(fetch(`${origin}${path}`, { headers }));
    expect([status, body]).toMatchObject([
      200,
      {
        aggregates: [
          {
            key: { model_id: modelId, rollout_id: rolloutId, cohort: "COHORT_EXPOSED", slice: -1 },
            operation: "OPERATION_INFERENCE",
            count: "3",
            mean_ms: 20,
          },
        ],
      },
    ]);
  });

  it.each([
    ["a JSON key that the contract does not know", () => report(batch(2, { note: "what the user typed" })), 400],
    ["a value of the wrong type", () => report(batch(2, { milliseconds: ["what the user typed"] })), 400],
    ["a value outside its bounds", () => report(batch(2, { milliseconds: [-1] })), 400],
    ["another device's id", () => report(batch(2), `/api/v1/devices/${newId("dev")}/telemetry`), 403],
    ["a key in a device's place", () => report(batch(2), undefined, reader.token), 403],
    [
      "a key without the scope",
      () => fetch(`${origin}/api/v1/telemetry/health`, { headers: { authorization: `Bearer ${stranger.token}` } }),
      403,
    ],
    ["nobody", () => fetch(`${origin}/api/v1/telemetry/health`), 401],
    [
      "an erasure that comes from outside the mesh",
      () =>
        fetch(`${origin}/octomesh.tenant.v1.TenantService/EraseTenant`, {
          method: "POST",
          headers: { authorization: `Bearer ${reader.token}`, "content-type": json },
          body: JSON.stringify({ org_id: orgId }),
        }),
      404,
    ],
  ])("refuses %s", async (_, call, status) => {
    const response = await call();
    expect(response.status).toBe(status);
    await response.text();
  });

  it("takes nothing of a device that awaits approval", async () => {
    const token = await mesh.identity.sign({ kind: "device", orgId, id: waitingId });
    const path = `/api/v1/devices/${waitingId}/telemetry`;
    expect(await answerOf(report(batch(1), path, token))).toMatchObject([403, { code: "DEVICE_NOT_ACTIVE" }]);
  });

  it("names the JSON key that the contract does not know, and where it stands", async () => {
    const [, body] = await answerOf(report(batch(2, { note: "what the user typed" })));
    expect(JSON.stringify(body)).not.toContain("typed");
    expect(body).toMatchObject({ code: "UNKNOWN_FIELD", metadata: { fields: "reports[0].latency.note" } });
  });

  it("refuses an unknown field in a binary message whole, by its number", async () => {
    const message = create(ReportTelemetryRequestSchema, {
      id: deviceId,
      bootId: "boot",
      sequence: 3n,
      reports: [{ kind: { case: "health", value: { measureTime: timestampNow() } } }],
    });
    const unknown = new BinaryWriter().tag(1000, WireType.LengthDelimited).string("what the user typed").finish();
    const response = await fetch(`${origin}/octomesh.telemetry.v1.TelemetryService/ReportTelemetry`, {
      method: "POST",
      headers: { authorization: `Bearer ${deviceToken}`, "content-type": "application/proto" },
      body: Buffer.concat([toBinary(ReportTelemetryRequestSchema, message), unknown]),
    });
    const text = await response.text();
    expect(response.status).toBe(400);
    expect(text).toContain("1000");
    expect(text).not.toContain("typed");
  });

  it("writes nothing of what devices send into its log", () => {
    expect(mesh.logged.join("\n")).not.toContain("what the user typed");
    expect(mesh.logged.join("\n")).not.toContain(deviceToken);
  });
});

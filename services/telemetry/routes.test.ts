import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { createClient, createRouterTransport, type Interceptor } from "@connectrpc/connect";
import { callKey } from "@octomesh/mesh/call-context";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { groupCommit } from "@octomesh/mesh/group-commit";
import { openTestDatabase, testCall } from "@octomesh/mesh/test/database-fixture";
import { WatchRolloutDefinitionsResponseSchema } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { Rollout_State as State } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { LatencyReport_Operation as Operation } from "@octomesh/proto/octomesh/telemetry/v1/latency_report_pb";
import { RolloutProgress_Step as Step } from "@octomesh/proto/octomesh/telemetry/v1/rollout_progress_pb";
import {
  type ReportTelemetryRequest_ReportSchema as ReportSchema,
  ReportTelemetryRequestSchema,
  TelemetryService,
} from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { Registry } from "prom-client";
import { describe, expect, it } from "vitest";
import { Cohort } from "./cohort.ts";
import { contractMinor } from "./contract-minor.ts";
import { defaultMeasureWindow as window } from "./measure-window.ts";
import { createTelemetryMetrics } from "./metrics.ts";
import { createRolloutDefinitions } from "./rollout-definitions.ts";
import { tenantRoutes } from "./routes/erase-tenant.ts";
import { listRoutes } from "./routes/list-aggregates.ts";
import { reportRoutes } from "./routes/report-telemetry.ts";
import { type Batch, type BatchOutcome, createStore, type TelemetrySchema } from "./store.ts";
import { sampleDevice, sampleId } from "./test/sample-ids.ts";
import { createUnknownSubjects } from "./unknown-subjects.ts";

const migrations = new URL("./migrations/", import.meta.url);
const database = await openTestDatabase<TelemetrySchema>({ service: "telemetry", migrations });
const store = createStore(database);
const registry = new Registry();
const metrics = createTelemetryMetrics(registry);

const now = Date.UTC(2026, 2, 1, 12, 0, 30);
const clock = { now: () => now };
const measureTime = timestampFromMs(now - 2000);

/** Organisations are letters; each has a model, a version and a rollout of its letter. */
let letter = "a";
const own = (prefix: string): string => sampleId(prefix, letter);

const definitions = createRolloutDefinitions();
definitions.apply(
  create(WatchRolloutDefinitionsResponseSchema, {
    caughtUp: true,
    rollouts: [..."abcdefghpqr"].map((name) => ({
      id: sampleId("rol", name),
      orgId: sampleId("org", name),
      modelId: sampleId("mdl", name),
      versionId: sampleId("mvr", name),
      salt: "s",
      state: State.RUNNING,
      percentageThousandths: 100_000,
    })),
  }),
);

const commits = groupCommit<Batch, BatchOutcome>({
  maxDelayMs: 2,
  maxItems: 64,
  maxPending: 1024,
  flush: (batches) => store.storeBatches(batches),
});

/** What the runtime does before a handler: says who calls. A device calls as the one that its request names. */
const callAs: Interceptor = (next) => (request) => {
  const call = testCall(own("org"));
  const id = "id" in request.message && typeof request.message.id === "string" ? request.message.id : "";
  request.contextValues.set(callKey, { ...call, caller: { ...call.caller, kind: "device", id } });
  return next(request);
};

function clients(deps: Partial<Parameters<typeof reportRoutes>[0]> = {}, lists = store) {
  const transport = createRouterTransport(
    (router) => {
      router.service(TelemetryService, {
        ...reportRoutes({
          activeDevices: { demand: async () => undefined },
          definitions,
          unknownSubjects: createUnknownSubjects(),
          window,
          clock,
          metrics,
          submit: commits.submit,
          ...deps,
        }),
        ...listRoutes({ store: lists, clock, pageKey: new Uint8Array(32) }),
      });
      router.service(TenantService, tenantRoutes(store));
    },
    { router: { interceptors: [callAs] } },
  );
  return { telemetry: createClient(TelemetryService, transport), tenant: createClient(TenantService, transport) };
}

const { telemetry, tenant } = clients();

/** Runs as another organisation than the usual one. */
async function as<T>(name: string, run: () => Promise<T>): Promise<T> {
  const usual = letter;
  letter = name;
  try {
    return await run();
  } finally {
    letter = usual;
  }
}

type Kind = MessageInitShape<typeof ReportSchema>["kind"];

function latency(milliseconds: number[], change: Record<string, unknown> = {}): Kind {
  const operation = Operation.INFERENCE;
  return {
    case: "latency",
    value: { measureTime, modelId: own("mdl"), versionId: own("mvr"), operation, milliseconds, ...change },
  };
}

function batch(sequence: number, kinds: Kind[], bootId = "boot", device = 0) {
  const reports = kinds.map((kind) => ({ kind }));
  return create(ReportTelemetryRequestSchema, {
    id: sampleDevice(device),
    bootId,
    sequence: BigInt(sequence),
    reports,
  });
}

async function reasonFor(promise: Promise<unknown>): Promise<Reason | undefined> {
  return promise.then(
    () => undefined,
    (error: unknown) => reasonOf(error),
  );
}

/** A field that the contract does not know, as it is read from the wire. */
function unknownField(no: number) {
  const data = new BinaryWriter().string("what the user typed").finish();
  return { no, wireType: WireType.LengthDelimited, data };
}

describe("ReportTelemetry", () => {
  it("stores reports and answers how many, and a repetition changes nothing", async () => {
    await as("b", async () => {
      const request = batch(1, [latency([10, 20]), { case: "health", value: { measureTime } }]);
      expect(await telemetry.reportTelemetry(request)).toMatchObject({ accepted: 2, duplicate: false });
      expect(await telemetry.reportTelemetry(request)).toMatchObject({ accepted: 2, duplicate: true });
      const { aggregates } = await telemetry.listLatencyAggregates({});
      expect(aggregates.map(({ count }) => count)).toEqual([2n]);
    });
  });

  it("counts each batch exactly once while every device retries every batch at the same time", async () => {
    await as("c", async () => {
      const answers = [];
      for (let device = 0; device < 10; device++) {
        for (let sequence = 0; sequence < 4; sequence++) {
          const request = batch(sequence, [latency([1 + device, 2 + sequence])], "boot", device);
          for (let attempt = 0; attempt < 3; attempt++) answers.push(telemetry.reportTelemetry(request));
        }
      }
      const settled = await Promise.all(answers);
      expect(settled.filter(({ duplicate }) => !duplicate)).toHaveLength(40);
      const { aggregates } = await telemetry.listLatencyAggregates({});
      expect(aggregates.map(({ count }) => count)).toEqual([80n]);
    });
  });

  it("refuses a message with an unknown field whole, names numbers and never values", async () => {
    await as("d", async () => {
      const request = batch(1, [latency([10])]);
      const [report] = request.reports;
      if (report === undefined) throw new Error("unreachable");
      report.$unknown = [unknownField(99)];
      const error = await telemetry.reportTelemetry(request).catch((reason: unknown) => reason);
      expect(reasonOf(error)).toBe(Reason.UNKNOWN_FIELD);
      expect(String(error)).toContain("reports[0].99");
      expect(String(error)).not.toContain("typed");
      expect(await store.countOrganization(own("org"))).toBe(0);
    });
  });

  it("drops and counts unknown fields, and kinds, of a device that announces a newer contract", async () => {
    await as("e", async () => {
      const request = batch(1, [latency([10]), { case: undefined }]);
      request.contractMinor = contractMinor + 1;
      for (const [index, report] of request.reports.entries()) report.$unknown = [unknownField(70 + index)];
      expect(await telemetry.reportTelemetry(request)).toMatchObject({ accepted: 1, droppedFields: 2 });
      expect(await telemetry.reportTelemetry(request)).toMatchObject({
        duplicate: true,
        accepted: 1,
        droppedFields: 2,
      });
    });
  });

  it.each([
    ["a report without a kind", { case: undefined } as Kind, Reason.VALIDATION_FAILED],
    ["a model of another organisation", latency([1], { modelId: sampleId("mdl", "f") }), Reason.RESOURCE_NOT_FOUND],
    [
      "a rollout of another organisation",
      {
        case: "rolloutProgress",
        value: {
          measureTime,
          modelId: own("mdl"),
          versionId: own("mvr"),
          rolloutId: sampleId("rol", "f"),
          step: Step.OFFERED,
        },
      } as Kind,
      Reason.RESOURCE_NOT_FOUND,
    ],
  ])("refuses %s", async (_, kind, reason) => {
    expect(await reasonFor(telemetry.reportTelemetry(batch(1, [latency([1]), kind], "refused")))).toBe(reason);
  });

  it("takes reports on so many subjects that no rollout names, and leaves those on more of them out", async () => {
    await as("r", async () => {
      const unknown = { modelId: sampleId("mdl", "x"), versionId: sampleId("mvr", "x") };
      const { telemetry } = clients({ unknownSubjects: createUnknownSubjects(2) });
      const kinds = [..."xyz"].map((name) => latency([1], { ...unknown, versionId: sampleId("mvr", name) }));
      const request = batch(1, [...kinds, latency([1]), { case: "health", value: { measureTime } }]);
      expect(await telemetry.reportTelemetry(request)).toMatchObject({ accepted: 4 });
      // Another device of the organisation has no more to give away.
      expect(await telemetry.reportTelemetry(batch(1, kinds, "boot", 1))).toMatchObject({ accepted: 2 });
      const { aggregates } = await telemetry.listLatencyAggregates({});
      expect(aggregates.map(({ key }) => key?.versionId).sort()).toEqual(
        [own("mvr"), sampleId("mvr", "x"), sampleId("mvr", "y")].sort(),
      );
    });
  });

  it("stores reports of models that no rollout is known of outside every cohort", async () => {
    await as("g", async () => {
      await telemetry.reportTelemetry(
        batch(1, [latency([1], { modelId: sampleId("mdl", "x"), versionId: sampleId("mvr", "x") })]),
      );
      const { aggregates } = await telemetry.listLatencyAggregates({});
      expect(aggregates.map(({ key }) => [key?.cohort, key?.rolloutId])).toEqual([[Cohort.NONE, ""]]);
    });
  });

  it("leaves out what was measured outside the window, and says so by the count", async () => {
    await as("h", async () => {
      const request = batch(1, [
        latency([1]),
        latency([2], { measureTime: timestampFromMs(now - window.pastMs - 1) }),
        latency([3], { measureTime: timestampFromMs(now + window.futureMs + 1) }),
        latency([4], { measureTime: timestampFromMs(now + 60_000) }),
      ]);
      expect(await telemetry.reportTelemetry(request)).toMatchObject({ accepted: 2 });
      const { aggregates } = await telemetry.listLatencyAggregates({});
      expect(aggregates.map(({ count, maxMs }) => [count, maxMs])).toEqual([[2n, 4]]);
    });
  });

  it("takes nothing before it knows where reports belong", async () => {
    const early = clients({ definitions: createRolloutDefinitions() });
    expect(await reasonFor(early.telemetry.reportTelemetry(batch(1, [latency([1])], "early")))).toBe(
      Reason.DEPENDENCY_UNAVAILABLE,
    );
  });

  it("acknowledges nothing that was not stored", async () => {
    const failing = clients({ submit: () => Promise.reject(new Error("disk full")) });
    await expect(failing.telemetry.reportTelemetry(batch(9, [latency([1])], "lost"))).rejects.toThrow();
  });
});

describe("lists of aggregates", () => {
  it("answer with the cohort of the device's bucket, percentiles, and the key of each stretch of time", async () => {
    await telemetry.reportTelemetry(batch(1, [latency([10, 20, 30, 40, 1000], { errors: 2 })], "listed"));
    const { aggregates } = await telemetry.listLatencyAggregates({
      filter: { modelId: own("mdl"), bySlice: true, width: durationFromMs(300_000) },
    });
    const [aggregate] = aggregates;
    expect(aggregate?.key).toMatchObject({
      modelId: own("mdl"),
      versionId: own("mvr"),
      rolloutId: own("rol"),
      cohort: Cohort.EXPOSED,
    });
    expect(aggregate?.key?.slice).toBeGreaterThanOrEqual(0);
    expect(aggregate?.key?.startTime).toEqual(timestampFromMs(Date.UTC(2026, 2, 1, 12)));
    expect(aggregate).toMatchObject({
      operation: Operation.INFERENCE,
      count: 5n,
      errors: 2n,
      meanMs: 220,
      maxMs: 1000,
    });
    expect(Math.abs((aggregate?.p50Ms ?? 0) - 30)).toBeLessThanOrEqual(0.3);
  });

  it("page, with tokens that are good for the same filter only", async () => {
    await as("p", async () => {
      const kinds = [0, 1, 2, 3, 4].map((minute) =>
        latency([1], { measureTime: timestampFromMs(now - minute * 60_000) }),
      );
      await telemetry.reportTelemetry(batch(1, kinds));
      const seen = [];
      let pageToken = "";
      do {
        const page = await telemetry.listLatencyAggregates({ pageSize: 2, pageToken });
        seen.push(...page.aggregates.map(({ key }) => Number(key?.startTime?.seconds)));
        pageToken = page.nextPageToken;
        if (pageToken !== "") {
          const other = telemetry.listLatencyAggregates({ pageToken, filter: { bySlice: true } });
          expect(await reasonFor(other)).toBe(Reason.PAGE_TOKEN_INVALID);
          expect(await reasonFor(telemetry.listHealthAggregates({ pageToken }))).toBe(Reason.PAGE_TOKEN_INVALID);
        }
      } while (pageToken !== "");
      expect(seen).toEqual([...new Set(seen)].sort((a, b) => a - b));
      expect(seen).toHaveLength(5);
    });
  });

  it("tell nothing of another organisation", async () => {
    await as("z", async () => {
      for (const list of [
        telemetry.listHealthAggregates({}),
        telemetry.listLatencyAggregates({}),
        telemetry.listQualityAggregates({}),
        telemetry.listRolloutProgressAggregates({}),
      ]) {
        expect((await list).aggregates).toEqual([]);
      }
    });
  });
});

it("reads few aggregates of an organisation at a time, and leaves the database to reports", async () => {
  let reading = 0;
  let most = 0;
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const listHealth: typeof store.listHealth = async (...asked) => {
    most = Math.max(most, ++reading);
    await held;
    reading--;
    return await store.listHealth(...asked);
  };
  const { telemetry } = clients({}, { ...store, listHealth });
  const lists = Array.from({ length: 40 }, () => reasonFor(telemetry.listHealthAggregates({})));
  expect(await Promise.race(lists)).toBe(Reason.OVERLOADED);
  release();
  const reasons = await Promise.all(lists);
  expect(reasons.filter((reason) => reason === undefined)).toHaveLength(34);
  expect(most).toBe(2);
});

describe("EraseTenant", () => {
  it("erases an organisation and proves it by a fresh count", async () => {
    const doomed = sampleId("org", "q");
    await as("q", () => telemetry.reportTelemetry(batch(1, [latency([1])])));
    const { erased, remaining } = await tenant.eraseTenant({ orgId: doomed });
    expect(erased).toMatchObject({ batches: 1n, latency_rollups: 1n });
    expect(remaining).toBe(0n);
    expect((await tenant.eraseTenant({ orgId: doomed })).erased).toMatchObject({ batches: 0n });
  });
});

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { openTestDatabase } from "@octomesh/mesh/test/database-fixture";
import { LatencyReport_Operation as Operation } from "@octomesh/proto/octomesh/telemetry/v1/latency_report_pb";
import { QualityReport_Metric as Metric } from "@octomesh/proto/octomesh/telemetry/v1/quality_report_pb";
import { RolloutProgress_Step as Step } from "@octomesh/proto/octomesh/telemetry/v1/rollout_progress_pb";
import { ReportTelemetryRequest_ReportSchema as ReportSchema } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { sql } from "kysely";
import { describe, expect, it } from "vitest";
import type { AggregateQuery } from "./aggregate-query.ts";
import { Cohort, type Placement } from "./cohort.ts";
import { quantilesOf } from "./latency-sketch.ts";
import { batchMemoryMs, defaultMeasureWindow as window } from "./measure-window.ts";
import { pruneOnce } from "./retention.ts";
import { rollUp } from "./rollups.ts";
import { type Batch, createStore, cursorOf, type TelemetrySchema } from "./store.ts";
import { sampleDevice, sampleId } from "./test/sample-ids.ts";

const migrations = new URL("./migrations/", import.meta.url);
const database = await openTestDatabase<TelemetrySchema>({ service: "telemetry", migrations });
const store = createStore(database);
const otherReplica = createStore(await database.reopen());

const now = Date.UTC(2026, 2, 1, 12, 0, 30);
const modelId = sampleId("mdl", "a");
const versionId = sampleId("mvr", "a");
const rolloutId = sampleId("rol", "a");
const placement: Placement = { rolloutId, cohort: Cohort.EXPOSED, slice: 3 };
const measureTime = timestampFromMs(now - 1000);

let organizations = 0;

/** An organisation that no other test uses. */
function newOrg(): string {
  organizations += 1;
  return `org_${"abcdefghijklmnopqrstuvwxyz"[organizations]}${"b".repeat(25)}`;
}

interface BatchInit {
  orgId: string;
  sequence?: number;
  device?: number;
  receiveMs?: number;
  placement?: Placement;
  reports: MessageInitShape<typeof ReportSchema>["kind"][];
}

function batchOf(init: BatchInit): Batch {
  const { orgId, sequence = 0, device = 0, receiveMs = now } = init;
  const deviceId = sampleDevice(device);
  const reports = init.reports.map((kind) => create(ReportSchema, { kind }));
  const place = () => init.placement ?? placement;
  const { rollups, accepted } = rollUp(reports, { orgId, deviceId, receiveMs, window, place });
  return {
    orgId,
    deviceId,
    bootId: "boot",
    sequence: BigInt(sequence),
    receiveMs,
    accepted,
    droppedFields: 0,
    rollups,
  };
}

function latency(milliseconds: number[], errors = 0, atMs = now - 1000): MessageInitShape<typeof ReportSchema>["kind"] {
  const operation = Operation.INFERENCE;
  return {
    case: "latency",
    value: { measureTime: timestampFromMs(atMs), modelId, versionId, operation, milliseconds, errors },
  };
}

const lastHour: AggregateQuery = {
  modelId: "",
  versionId: "",
  rolloutId: "",
  startMs: now - 3_630_000,
  endMs: now + 30_000,
  widthMs: 60_000,
  bySlice: false,
};
const firstPage = { limit: 1000, after: undefined };

describe("storeBatches", () => {
  it("sums every kind of report under its key", async () => {
    const orgId = newOrg();
    await store.storeBatches([
      batchOf({
        orgId,
        reports: [
          { case: "health", value: { measureTime, modelId, versionId, batteryPercent: 40, crashes: 2, jobsFailed: 1 } },
          { case: "health", value: { measureTime, modelId, versionId, batteryPercent: 60, thermalState: 4 } },
          {
            case: "quality",
            value: { measureTime, modelId, versionId, metric: Metric.DRIFT, value: 0.5, samples: 10 },
          },
          { case: "quality", value: { measureTime, modelId, versionId, metric: Metric.DRIFT, value: 2, samples: 30 } },
          {
            case: "rolloutProgress",
            value: {
              measureTime,
              rolloutId,
              modelId,
              versionId,
              step: Step.DOWNLOADED,
              bytes: 7n,
              duration: durationFromMs(1500),
            },
          },
          {
            case: "rolloutProgress",
            value: { measureTime, rolloutId, modelId, versionId, step: Step.DOWNLOADED, bytes: 2n ** 62n },
          },
          latency([1, 2, 3], 4),
        ],
      }),
      batchOf({
        orgId,
        device: 1,
        reports: [
          { case: "health", value: { measureTime, modelId, versionId } },
          {
            case: "rolloutProgress",
            value: { measureTime, rolloutId, modelId, versionId, step: Step.DOWNLOADED, bytes: 2n ** 62n },
          },
        ],
      }),
    ]);
    const key = { startMs: Date.UTC(2026, 2, 1, 12), modelId, versionId, rolloutId, cohort: Cohort.EXPOSED, slice: -1 };
    expect(await store.listHealth(orgId, lastHour, firstPage)).toEqual([
      {
        ...key,
        dimension: 0,
        reports: 3n,
        devices: 2n,
        crashes: 2n,
        jobsCompleted: 0n,
        jobsFailed: 1n,
        batterySum: 100,
        batteryReports: 2,
        hotReports: 1n,
      },
    ]);
    expect(await store.listQuality(orgId, lastHour, firstPage)).toEqual([
      { ...key, dimension: Metric.DRIFT, reports: 2n, samples: 40n, weightedSum: 65, min: 0.5, max: 2 },
    ]);
    // The sum of what devices claim is more than an int64 holds: it stops at the greatest.
    expect(await store.listProgress(orgId, lastHour, firstPage)).toEqual([
      { ...key, dimension: Step.DOWNLOADED, count: 3n, bytes: 2n ** 63n - 1n, durationSeconds: 1.5, timed: 1 },
    ]);
    expect(await store.listLatency(orgId, lastHour, firstPage)).toEqual([
      { ...key, dimension: Operation.INFERENCE, count: 3n, errors: 4n, sumMs: 6, maxMs: 3, sketch: expect.anything() },
    ]);
  });

  it("counts a batch once, however often and wherever it is repeated, and answers as at first", async () => {
    const orgId = newOrg();
    const batch = batchOf({ orgId, reports: [latency([5])] });
    const first = await store.storeBatches([batch, batch]);
    expect(first.map(({ duplicate }) => duplicate)).toEqual([false, true]);
    const changed = { ...batchOf({ orgId, reports: [latency([7, 8]), latency([9])] }), sequence: batch.sequence };
    expect(await otherReplica.storeBatches([changed])).toEqual([{ duplicate: true, accepted: 1, droppedFields: 0 }]);
    const [row] = await store.listLatency(orgId, lastHour, firstPage);
    expect(row).toMatchObject({ count: 1n, sumMs: 5 });
  });

  it("loses nothing and counts nothing twice when two replicas store the same and different batches at once", async () => {
    const orgId = newOrg();
    const otherOrg = newOrg();
    const batches: Batch[] = [];
    for (let device = 0; device < 20; device++) {
      for (let sequence = 0; sequence < 5; sequence++) {
        const org = device % 2 === 0 ? orgId : otherOrg;
        const slice = device % 4;
        batches.push(
          batchOf({
            orgId: org,
            device,
            sequence,
            placement: { ...placement, slice },
            reports: [
              latency([sequence + 1, 100 * (device + 1)]),
              { case: "health", value: { measureTime, crashes: 1 } },
            ],
          }),
        );
      }
    }
    const flushes: Batch[][] = [];
    for (let start = 0; start < batches.length; start += 10) flushes.push(batches.slice(start, start + 10));
    const outcomes = await Promise.all([
      ...flushes.map((flush) => store.storeBatches(flush)),
      ...flushes.map((flush) => otherReplica.storeBatches([...flush].reverse())),
      ...[...flushes].reverse().map((flush) => store.storeBatches(flush)),
    ]);
    const fresh = outcomes.flat().filter(({ duplicate }) => !duplicate);
    expect(fresh).toHaveLength(batches.length);
    for (const org of [orgId, otherOrg]) {
      const [row] = await store.listLatency(org, lastHour, firstPage);
      expect(row).toMatchObject({ count: 100n });
      const inBins = [...(row?.sketch.bins.values() ?? [])].reduce((sum, count) => sum + count, 0);
      expect(inBins).toBe(100);
      const health = await store.listHealth(org, { ...lastHour, bySlice: true }, firstPage);
      expect(health.reduce((sum, { crashes }) => sum + crashes, 0n)).toBe(50n);
    }
  });

  it("stores nothing of a flush that fails half-way, and takes it when it is repeated", async () => {
    const orgId = newOrg();
    const good = batchOf({ orgId, reports: [latency([5])] });
    const bad: Batch = {
      ...batchOf({ orgId, device: 1, reports: [latency([5])], placement: { ...placement, slice: 99 } }),
    };
    await expect(store.storeBatches([good, bad])).rejects.toThrow();
    expect(await store.countOrganization(orgId)).toBe(0);
    expect(await store.storeBatches([good])).toEqual([{ duplicate: false, accepted: 1, droppedFields: 0 }]);
  });
});

describe("lists", () => {
  it("answer percentiles within 1 % of all measurements, however they were split over batches, minutes and slices", async () => {
    const orgId = newOrg();
    const all: number[] = [];
    // A long tail: what percentiles are for. Deterministic, so that a failure can be looked at.
    for (let number = 0; number < 20_000; number++)
      all.push(2 + 40 * (-Math.log(1 - ((number * 7919) % 20_000) / 20_001)) ** 2);
    const batches: Batch[] = [];
    for (let start = 0; start < all.length; start += 500) {
      const sequence = start / 500;
      batches.push(
        batchOf({
          orgId,
          sequence,
          placement: { ...placement, slice: sequence % 32 },
          reports: [latency(all.slice(start, start + 500), 0, now - (sequence % 10) * 60_000)],
        }),
      );
    }
    await Promise.all([store.storeBatches(batches.slice(0, 20)), otherReplica.storeBatches(batches.slice(20))]);
    const whole = await store.listLatency(
      orgId,
      { ...lastHour, startMs: now - 86_400_000, endMs: now + 86_400_000, widthMs: 86_400_000 },
      firstPage,
    );
    expect(whole).toHaveLength(1);
    const [day] = whole;
    expect(day?.count).toBe(20_000n);
    const sorted = [...all].sort((a, b) => a - b);
    const quantiles = [0.01, 0.5, 0.9, 0.95, 0.99, 0.999];
    for (const [index, found] of quantilesOf(day?.sketch ?? { zeros: 0, bins: new Map() }, quantiles).entries()) {
      const exact = sorted[Math.floor((quantiles[index] ?? 0) * (sorted.length - 1))] ?? 0;
      expect(Math.abs(found - exact) / exact).toBeLessThanOrEqual(0.01 + 1e-9);
    }
  });

  it("page through every aggregate once, in order, sketches included", async () => {
    const orgId = newOrg();
    const batches: Batch[] = [];
    for (let slice = 0; slice < 8; slice++) {
      for (let minute = 0; minute < 5; minute++) {
        const reports = [latency([slice + 1, minute + 1], 0, now - minute * 60_000)];
        batches.push(batchOf({ orgId, device: slice, sequence: minute, placement: { ...placement, slice }, reports }));
      }
    }
    await store.storeBatches(batches);
    const query = { ...lastHour, bySlice: true };
    const whole = await store.listLatency(orgId, query, firstPage);
    expect(whole).toHaveLength(40);
    const paged = [];
    let after: readonly string[] | undefined;
    for (;;) {
      const page = await store.listLatency(orgId, query, { limit: 7, after });
      paged.push(...page);
      const last = page.at(-1);
      if (last === undefined) break;
      after = cursorOf(last);
    }
    expect(paged).toEqual(whole);
    expect(paged.every(({ sketch }) => [...sketch.bins.values()].reduce((a, b) => a + b, 0) === 2)).toBe(true);
    expect(paged.map(({ startMs }) => startMs)).toEqual(paged.map(({ startMs }) => startMs).sort((a, b) => a - b));
  });

  it("hold only what the filter asks for", async () => {
    const orgId = newOrg();
    const place = (letter: string): Placement => ({
      rolloutId: sampleId("rol", letter),
      cohort: Cohort.WAITING,
      slice: 0,
    });
    await store.storeBatches([
      batchOf({ orgId, sequence: 0, placement: place("a"), reports: [latency([1])] }),
      batchOf({ orgId, sequence: 1, placement: place("b"), reports: [latency([1], 0, now - 7_200_000)] }),
      batchOf({ orgId, sequence: 2, placement: place("b"), reports: [latency([1])] }),
    ]);
    const count = async (change: Partial<AggregateQuery>) =>
      (await store.listLatency(orgId, { ...lastHour, ...change }, firstPage)).length;
    expect(await count({})).toBe(2);
    expect(await count({ rolloutId: sampleId("rol", "b") })).toBe(1);
    expect(await count({ rolloutId: sampleId("rol", "b"), startMs: now - 86_400_000 })).toBe(2);
    expect(await count({ modelId: sampleId("mdl", "z") })).toBe(0);
    expect(await count({ modelId, versionId })).toBe(2);
  });

  it("hold nothing of another organisation", async () => {
    const orgId = newOrg();
    await store.storeBatches([batchOf({ orgId, reports: [latency([1])] })]);
    expect(await store.listLatency(newOrg(), lastHour, firstPage)).toEqual([]);
    const stranger = batchOf({ orgId: newOrg(), reports: [latency([1])] });
    await expect(
      database.ingest([orgId], async (tx) => {
        await sql`insert into batches values (${stranger.orgId}, 'd', 'b', 1, 1, 0, now())`.execute(tx);
      }),
    ).rejects.toThrow();
  });
});

describe("retention and erasure", () => {
  it("deletes what is past its time, a bounded number of rows at a time, and nothing else", async () => {
    const orgId = newOrg();
    const day = 86_400_000;
    const batches = [];
    for (let sequence = 0; sequence < 12; sequence++) {
      const receiveMs = now - (sequence < 10 ? 31 * day : 0);
      const reports = [latency([1], 0, receiveMs - sequence * 60_000)];
      batches.push(batchOf({ orgId, sequence, receiveMs, reports }));
    }
    await store.storeBatches(batches);
    const { signal } = new AbortController();
    const options = { store, keepMs: 30 * day, window, chunkRows: 3, signal };
    const before = await store.countOrganization(orgId);
    const pruned = await pruneOnce(options, now);
    expect(before - (await store.countOrganization(orgId))).toBe(20);
    expect(pruned).toBeGreaterThanOrEqual(20);
    expect(await store.listLatency(orgId, lastHour, firstPage)).toHaveLength(2);
    expect(await pruneOnce(options, now)).toBe(0);
    // A repetition is known for as long as its reports could still be stored.
    expect(await pruneOnce({ ...options, keepMs: 400 * day }, now + batchMemoryMs(window) - day)).toBe(0);
  });

  it("erases an organisation, counts it, and leaves the others alone", async () => {
    const [orgId, neighbour] = [newOrg(), newOrg()];
    const reports: BatchInit["reports"] = [latency([1]), { case: "health", value: { measureTime } }];
    await store.storeBatches([batchOf({ orgId, reports }), batchOf({ orgId: neighbour, reports })]);
    expect(await store.eraseOrganization(orgId)).toEqual({
      batches: 1,
      health_rollups: 1,
      latency_rollups: 1,
      quality_rollups: 0,
      progress_rollups: 0,
    });
    expect(await store.countOrganization(orgId)).toBe(0);
    expect(await store.countOrganization(neighbour)).toBe(3);
    expect(await store.eraseOrganization(orgId)).toMatchObject({ batches: 0, latency_rollups: 0 });
  });
});

import { durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type HealthReport,
  HealthReport_ThermalState as ThermalState,
} from "@octomesh/proto/octomesh/telemetry/v1/health_report_pb";
import type { LatencyReport } from "@octomesh/proto/octomesh/telemetry/v1/latency_report_pb";
import type { QualityReport } from "@octomesh/proto/octomesh/telemetry/v1/quality_report_pb";
import type { RolloutProgress } from "@octomesh/proto/octomesh/telemetry/v1/rollout_progress_pb";
import type { ReportTelemetryRequest_Report as Report } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import type { Placement, Subject } from "./cohort.ts";
import { addMeasurement, emptySketch, type LatencySketch, mergeSketch } from "./latency-sketch.ts";
import { type MeasureWindow, minuteOf } from "./measure-window.ts";

/** What one row of rollups is of. Ids are "" where reports name none. */
export interface RollupKey {
  readonly orgId: string;
  /** Beginning of the minute, milliseconds since the epoch. */
  readonly minute: number;
  readonly modelId: string;
  readonly versionId: string;
  readonly rolloutId: string;
  readonly cohort: number;
  readonly slice: number;
  /** Operation, metric or step; 0 for health. */
  readonly dimension: number;
}

/** Sums of health reports. */
export interface HealthSums {
  readonly key: RollupKey;
  reports: number;
  /** Devices, counted once for each batch: at most as many as this. */
  devices: number;
  crashes: number;
  jobsCompleted: number;
  jobsFailed: number;
  batterySum: number;
  batteryReports: number;
  hotReports: number;
}

/** Sums of latency reports. */
export interface LatencySums {
  readonly key: RollupKey;
  count: number;
  errors: number;
  sumMs: number;
  maxMs: number;
  readonly sketch: LatencySketch;
}

/** Sums of quality reports. */
export interface QualitySums {
  readonly key: RollupKey;
  reports: number;
  samples: number;
  /** Sum of value times samples. */
  weightedSum: number;
  min: number;
  max: number;
}

/** Sums of progress in rollouts. */
export interface ProgressSums {
  readonly key: RollupKey;
  count: number;
  bytes: bigint;
  durationSeconds: number;
  /** Reports that said how long the step took. */
  timed: number;
}

/** Sums by key, of each kind. */
export interface Rollups {
  readonly health: Map<string, HealthSums>;
  readonly latency: Map<string, LatencySums>;
  readonly quality: Map<string, QualitySums>;
  readonly progress: Map<string, ProgressSums>;
}

/** Where the reports of one batch come from, and what decides where they count. */
export interface BatchContext {
  readonly orgId: string;
  readonly deviceId: string;
  /** When the batch was received, milliseconds since the epoch. */
  readonly receiveMs: number;
  readonly window: MeasureWindow;
  /** Where reports on a subject count; undefined where they are not taken. */
  place(subject: Subject): Placement | undefined;
}

/** Sums of nothing. */
export function emptyRollups(): Rollups {
  return { health: new Map(), latency: new Map(), quality: new Map(), progress: new Map() };
}

/**
 * Sums one batch's reports. Those measured outside the window, those without a kind that is known here, and those on a
 * subject that is not taken are left out; `accepted` counts the others.
 */
export function rollUp(reports: readonly Report[], context: BatchContext): { rollups: Rollups; accepted: number } {
  const rollups = emptyRollups();
  const placements = new Map<string, Placement | undefined>();
  let accepted = 0;
  for (const { kind } of reports) {
    if (kind.case === undefined || kind.value.measureTime === undefined) continue;
    const minute = minuteOf(timestampMs(kind.value.measureTime), context.receiveMs, context.window);
    if (minute === undefined) continue;
    const { modelId, versionId } = kind.value;
    const rolloutId = kind.case === "rolloutProgress" ? kind.value.rolloutId : "";
    const subject = `${modelId}|${versionId}|${rolloutId}`;
    let placement = placements.get(subject);
    if (placement === undefined && !placements.has(subject)) {
      placement = context.place({ deviceId: context.deviceId, modelId, versionId, rolloutId });
      placements.set(subject, placement);
    }
    if (placement === undefined) continue;
    accepted += 1;
    const base = { orgId: context.orgId, minute, modelId, versionId, ...placement };
    switch (kind.case) {
      case "health":
        addHealth(rollups.health, { ...base, dimension: 0 }, kind.value);
        break;
      case "latency":
        addLatency(rollups.latency, { ...base, dimension: kind.value.operation }, kind.value);
        break;
      case "quality":
        addQuality(rollups.quality, { ...base, dimension: kind.value.metric }, kind.value);
        break;
      case "rolloutProgress":
        addProgress(rollups.progress, { ...base, dimension: kind.value.step }, kind.value);
        break;
    }
  }
  return { rollups, accepted };
}

/** Adds what `other` holds. */
export function mergeRollups(rollups: Rollups, other: Rollups): void {
  for (const each of other.health.values()) {
    const sums = healthOf(rollups.health, each.key);
    sums.reports += each.reports;
    sums.devices += each.devices;
    sums.crashes += each.crashes;
    sums.jobsCompleted += each.jobsCompleted;
    sums.jobsFailed += each.jobsFailed;
    sums.batterySum += each.batterySum;
    sums.batteryReports += each.batteryReports;
    sums.hotReports += each.hotReports;
  }
  for (const each of other.latency.values()) {
    const sums = latencyOf(rollups.latency, each.key);
    sums.count += each.count;
    sums.errors += each.errors;
    sums.sumMs += each.sumMs;
    sums.maxMs = Math.max(sums.maxMs, each.maxMs);
    mergeSketch(sums.sketch, each.sketch);
  }
  for (const each of other.quality.values()) {
    const sums = qualityOf(rollups.quality, each.key);
    sums.reports += each.reports;
    sums.samples += each.samples;
    sums.weightedSum += each.weightedSum;
    sums.min = Math.min(sums.min, each.min);
    sums.max = Math.max(sums.max, each.max);
  }
  for (const each of other.progress.values()) {
    const sums = progressOf(rollups.progress, each.key);
    sums.count += each.count;
    sums.bytes += each.bytes;
    sums.durationSeconds += each.durationSeconds;
    sums.timed += each.timed;
  }
}

function addHealth(all: Map<string, HealthSums>, key: RollupKey, report: HealthReport): void {
  const sums = healthOf(all, key);
  sums.reports += 1;
  // A batch is one device's.
  sums.devices = 1;
  sums.crashes += report.crashes;
  sums.jobsCompleted += report.jobsCompleted;
  sums.jobsFailed += report.jobsFailed;
  if (report.batteryPercent !== undefined) {
    sums.batterySum += report.batteryPercent;
    sums.batteryReports += 1;
  }
  if (report.thermalState === ThermalState.SERIOUS || report.thermalState === ThermalState.CRITICAL) {
    sums.hotReports += 1;
  }
}

function addLatency(all: Map<string, LatencySums>, key: RollupKey, report: LatencyReport): void {
  const sums = latencyOf(all, key);
  sums.errors += report.errors;
  for (const ms of report.milliseconds) {
    sums.count += 1;
    sums.sumMs += ms;
    sums.maxMs = Math.max(sums.maxMs, ms);
    addMeasurement(sums.sketch, ms);
  }
}

function addQuality(all: Map<string, QualitySums>, key: RollupKey, report: QualityReport): void {
  const sums = qualityOf(all, key);
  sums.reports += 1;
  sums.samples += report.samples;
  sums.weightedSum += report.value * report.samples;
  sums.min = Math.min(sums.min, report.value);
  sums.max = Math.max(sums.max, report.value);
}

function addProgress(all: Map<string, ProgressSums>, key: RollupKey, report: RolloutProgress): void {
  const sums = progressOf(all, key);
  sums.count += 1;
  sums.bytes += report.bytes;
  if (report.duration !== undefined) {
    sums.durationSeconds += durationMs(report.duration) / 1000;
    sums.timed += 1;
  }
}

function healthOf(all: Map<string, HealthSums>, key: RollupKey): HealthSums {
  return entryOf(all, key, () => ({
    key,
    reports: 0,
    devices: 0,
    crashes: 0,
    jobsCompleted: 0,
    jobsFailed: 0,
    batterySum: 0,
    batteryReports: 0,
    hotReports: 0,
  }));
}

function latencyOf(all: Map<string, LatencySums>, key: RollupKey): LatencySums {
  return entryOf(all, key, () => ({ key, count: 0, errors: 0, sumMs: 0, maxMs: 0, sketch: emptySketch() }));
}

function qualityOf(all: Map<string, QualitySums>, key: RollupKey): QualitySums {
  const nothing = {
    reports: 0,
    samples: 0,
    weightedSum: 0,
    min: Number.POSITIVE_INFINITY,
    max: Number.NEGATIVE_INFINITY,
  };
  return entryOf(all, key, () => ({ key, ...nothing }));
}

function progressOf(all: Map<string, ProgressSums>, key: RollupKey): ProgressSums {
  return entryOf(all, key, () => ({ key, count: 0, bytes: 0n, durationSeconds: 0, timed: 0 }));
}

function entryOf<T>(all: Map<string, T>, key: RollupKey, make: () => T): T {
  const { orgId, minute, modelId, versionId, rolloutId, cohort, slice, dimension } = key;
  const name = `${orgId}|${minute}|${modelId}|${versionId}|${rolloutId}|${cohort}|${slice}|${dimension}`;
  let entry = all.get(name);
  if (entry === undefined) {
    entry = make();
    all.set(name, entry);
  }
  return entry;
}

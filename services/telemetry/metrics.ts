import { Counter, type Registry } from "prom-client";

/** What the service counts. */
export interface TelemetryMetrics {
  /** Batches that were stored, and their reports. */
  stored(reports: number): void;
  /** A batch that had been stored before. */
  duplicate(): void;
  /** Reports that were left out: measured outside the window, of a kind that is not known here, or on a subject too many. */
  leftOut(reports: number): void;
  /** Unknown fields of newer devices that were dropped. */
  dropped(fields: number): void;
  /** Rows that retention deleted. */
  pruned(rows: number): void;
}

/** Registers the service's counters. */
export function createTelemetryMetrics(registry: Registry): TelemetryMetrics {
  const counter = (name: string, help: string) => new Counter({ name, help, registers: [registry] });
  const batches = counter("octomesh_telemetry_batches_total", "Batches of reports stored");
  const reports = counter("octomesh_telemetry_reports_total", "Reports stored");
  const duplicates = counter("octomesh_telemetry_duplicates_total", "Batches that had been stored before");
  const leftOut = counter("octomesh_telemetry_left_out_total", "Reports left out: outside the window, or unknown");
  const dropped = counter("octomesh_telemetry_dropped_fields_total", "Unknown fields of newer devices dropped");
  const pruned = counter("octomesh_telemetry_pruned_rows_total", "Rows deleted by retention");
  return {
    stored(count) {
      batches.inc();
      reports.inc(count);
    },
    duplicate: () => duplicates.inc(),
    leftOut: (count) => leftOut.inc(count),
    dropped: (count) => dropped.inc(count),
    pruned: (count) => pruned.inc(count),
  };
}

import { Code, ConnectError } from "@connectrpc/connect";
import { isDeviceError, reasonOf } from "@octomesh/sdk";

/** What calls of a fleet came to. */
export interface CallStatistics {
  /** Counts a call. `method` is its name; `error` what it failed with, if it did. */
  record(method: string, durationMs: number, error?: unknown): void;
  /** The sums so far. */
  summary(): CallSummary;
}

/** Sums over calls. */
export interface CallSummary {
  calls: number;
  /** Calls that failed, those that were refused by a rate limit included; what the fleet gave up itself is not counted. */
  errors: number;
  /** Failed calls by reason, or by code where the mesh gave no reason. */
  errorsByReason: Record<string, number>;
  byMethod: Record<string, { calls: number; p50Ms: number; p95Ms: number; p99Ms: number; maxMs: number }>;
}

const keptSamples = 4096;

/** Begins to count calls. Percentiles are of a uniform sample of 4096 durations for each method (algorithm R). */
export function callStatistics(random: () => number = Math.random): CallStatistics {
  const methods = new Map<string, { calls: number; maxMs: number; sample: number[] }>();
  const reasons = new Map<string, number>();
  let errors = 0;
  return {
    record(method, durationMs, error) {
      const entry = methods.get(method) ?? { calls: 0, maxMs: 0, sample: [] };
      methods.set(method, entry);
      entry.calls += 1;
      entry.maxMs = Math.max(entry.maxMs, durationMs);
      if (entry.sample.length < keptSamples) entry.sample.push(durationMs);
      else {
        const at = Math.floor(random() * entry.calls);
        if (at < keptSamples) entry.sample[at] = durationMs;
      }
      const why = error === undefined ? undefined : whyOf(error);
      if (why === undefined) return;
      errors += 1;
      reasons.set(why, (reasons.get(why) ?? 0) + 1);
    },
    summary() {
      const byMethod: CallSummary["byMethod"] = {};
      let calls = 0;
      for (const [method, entry] of [...methods].sort(([a], [b]) => (a < b ? -1 : 1))) {
        calls += entry.calls;
        const sorted = [...entry.sample].sort((a, b) => a - b);
        byMethod[method] = {
          calls: entry.calls,
          p50Ms: percentile(sorted, 0.5),
          p95Ms: percentile(sorted, 0.95),
          p99Ms: percentile(sorted, 0.99),
          maxMs: entry.maxMs,
        };
      }
      return { calls, errors, errorsByReason: Object.fromEntries(reasons), byMethod };
    },
  };
}

/** A percentile of numbers in ascending order, by the nearest rank; 0 of none. `share` is from 0 to 1. */
export function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0;
}

function whyOf(error: unknown): string | undefined {
  if (!(error instanceof ConnectError)) return error instanceof Error ? error.name : "unknown";
  // A device that closes ends its calls with a reason of its own, which the transport takes for a failure.
  if (error.code === Code.Canceled || isDeviceError(error.cause, "CLOSED")) return undefined;
  return reasonOf(error) ?? Code[error.code];
}

import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  HealthReport_NetworkType,
  HealthReport_ThermalState,
} from "@octomesh/proto/octomesh/telemetry/v1/health_report_pb";
import { LatencyReport_Operation } from "@octomesh/proto/octomesh/telemetry/v1/latency_report_pb";
import { QualityReport_Metric } from "@octomesh/proto/octomesh/telemetry/v1/quality_report_pb";
import type { InstalledModel, TelemetryReport } from "@octomesh/sdk";

/** Makes up what a device of a simulated fleet measures: plausible, and the same for the same seed. */
export interface SyntheticTelemetry {
  /** Reports of one stretch of time, measured at `nowMs`: health, and latency and quality of each active model. */
  reports(nowMs: number, models: readonly InstalledModel[]): TelemetryReport[];
}

/** Begins the measurements of one device. `seed` is any whole number, such as the device's index. */
export function syntheticTelemetry(seed: number): SyntheticTelemetry {
  const random = seeded(seed);
  // Some devices are slower than others, for good.
  const pace = 0.7 + random() * 1.2;
  let battery = 40 + random() * 60;
  return {
    reports(nowMs, models) {
      battery = Math.max(5, battery - random() * 0.4);
      const measureTime = timestampFromMs(nowMs);
      const reports: TelemetryReport[] = [
        {
          kind: {
            case: "health",
            value: {
              measureTime,
              batteryPercent: Math.round(battery),
              charging: battery < 15,
              thermalState: random() < 0.97 ? HealthReport_ThermalState.NOMINAL : HealthReport_ThermalState.SERIOUS,
              networkType: random() < 0.8 ? HealthReport_NetworkType.WIFI : HealthReport_NetworkType.CELLULAR,
              freeStorageBytes: BigInt(Math.round((2 + random() * 30) * 1024 ** 3)),
              jobsCompleted: 1,
              modelId: models[0]?.modelId ?? "",
              versionId: models[0]?.versionId ?? "",
            },
          },
        },
      ];
      for (const { modelId, versionId } of models) {
        // Latency is skewed to the right, as it is: the exponential of a normal.
        const milliseconds = Array.from({ length: 20 }, () => pace * 4 * Math.exp(0.35 * normal(random)));
        const errors = random() < 0.02 ? 1 : 0;
        reports.push(
          {
            kind: {
              case: "latency",
              value: {
                measureTime,
                modelId,
                versionId,
                operation: LatencyReport_Operation.INFERENCE,
                milliseconds,
                errors,
              },
            },
          },
          {
            kind: {
              case: "quality",
              value: {
                measureTime,
                modelId,
                versionId,
                metric: QualityReport_Metric.CONFIDENCE,
                value: Math.min(1, Math.max(0, 0.9 + 0.03 * normal(random))),
                samples: 20,
              },
            },
          },
        );
      }
      return reports;
    },
  };
}

// Mulberry32: 32 bits of state are plenty for made-up batteries.
function seeded(seed: number): () => number {
  let state = (seed + 0x6d2b79f5) | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

// The Box-Muller transform.
function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

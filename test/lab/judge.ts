import type { SignalBundle } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import { Verdict_Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import { pino } from "pino";
import type { InferenceEngine } from "../../services/verdict/inference/infer.ts";

/** Alarms from the least to the greatest. */
export const alarms = ["none", "low", "medium", "high"] as const;
export type Alarm = (typeof alarms)[number];

let opened: Promise<InferenceEngine> | undefined;

/**
 * What the verdict service's model makes of a session. The addresses of a laboratory are private: no evidence that takes
 * a country is in it. Rejects where the model's data are missing or the report is none.
 */
export async function alarmOf(bundle: SignalBundle): Promise<Alarm> {
  // Only where a session is judged: the model opens files of some megabytes.
  opened ??= import("../../services/verdict/inference/infer.ts").then(({ openInference }) =>
    openInference({ log: pino({ level: "silent" }) }),
  );
  const { readCollectorReport } = await import("../../services/verdict/collector-report.ts");
  const report = readCollectorReport(bundle.collectorReport);
  const { alarm } = (await opened).infer({ bundle, report, measurements: [] });
  const name = Verdict_Alarm[alarm]?.toLowerCase();
  const found = alarms.find((each) => each === name);
  if (found === undefined) throw new Error(`the model answers alarm ${alarm}`);
  return found;
}

/** Whether an alarm is at least another. */
export function isAtLeast(alarm: Alarm, least: Alarm): boolean {
  return alarms.indexOf(alarm) >= alarms.indexOf(least);
}

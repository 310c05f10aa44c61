import { nameOfReason, type Reason } from "@octomesh/mesh/errors";
import { Verdict_Alarm as Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import { Counter, Gauge, Histogram, type Registry } from "prom-client";

/** What the service counts. Nothing of it is of one session or organisation. */
export interface VerdictMetrics {
  /** A session that was registered before its report. */
  registered(): void;
  /** Signals that were taken, and what they came to. */
  decided(alarm: Alarm): void;
  /** A bundle that had been taken before. */
  duplicate(): void;
  /** Signals that were refused. */
  refused(reason: Reason | undefined): void;
  /** Measurements of landmarks, believed and left out. */
  measured(believed: number, leftOut: number): void;
  /** How long a submission took, seconds. */
  took(seconds: number): void;
}

/** Registers the service's metrics. `held` is asked at each reading of them; undefined where Redis holds the sessions. */
export function createVerdictMetrics(registry: Registry, held: () => number | undefined): VerdictMetrics {
  const registers = [registry];
  const counter = (name: string, help: string) => new Counter({ name, help, registers });
  const registered = counter("octomesh_verdict_sessions_registered_total", "Sessions registered before their report");
  const taken = counter("octomesh_verdict_sessions_taken_total", "Sessions whose signals were taken");
  const duplicates = counter("octomesh_verdict_duplicates_total", "Bundles that had been taken before");
  const refused = new Counter({
    name: "octomesh_verdict_refused_total",
    help: "Signals that were refused, by reason",
    labelNames: ["reason"],
    registers,
  });
  const verdicts = new Counter({
    name: "octomesh_verdict_verdicts_total",
    help: "Verdicts, by alarm",
    labelNames: ["alarm"],
    registers,
  });
  const measurements = new Counter({
    name: "octomesh_verdict_measurements_total",
    help: "Measurements of landmarks, by whether they were believed",
    labelNames: ["believed"],
    registers,
  });
  const seconds = new Histogram({
    name: "octomesh_verdict_submit_seconds",
    help: "Time that a submission of signals took",
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5],
    registers,
  });
  if (held() !== undefined) {
    new Gauge({
      name: "octomesh_verdict_sessions_held",
      help: "Live sessions in this process's memory",
      registers,
      collect() {
        this.set(held() ?? 0);
      },
    });
  }
  return {
    registered: () => registered.inc(),
    decided(alarm) {
      taken.inc();
      verdicts.inc({ alarm: Alarm[alarm].toLowerCase() });
    },
    duplicate: () => duplicates.inc(),
    refused: (reason) => refused.inc({ reason: reason === undefined ? "INTERNAL" : nameOfReason(reason) }),
    measured(believed, leftOut) {
      measurements.inc({ believed: "yes" }, believed);
      measurements.inc({ believed: "no" }, leftOut);
    },
    took: (duration) => seconds.observe(duration),
  };
}

import { Counter, Gauge, type Registry } from "prom-client";
import type { EndOutcome, ForwardQueue } from "./forward-queue.ts";
import type { ForwardOutcome } from "./verdict-client.ts";

/** What an edge counts. Nothing in it tells one visitor from another. */
export interface EdgeMetrics {
  /** A report was answered with `ok` or an error's code. */
  report(code: string): void;
  attempt(kind: ForwardOutcome["kind"]): void;
  ended(outcome: EndOutcome): void;
  /** Bundles were dropped at the end of a grace. */
  lost(bundles: number): void;
}

/** Opens the counters, and the gauges that look at the queue and the channels when they are read. */
export function createEdgeMetrics(
  registry: Registry,
  watched: { queue(): ForwardQueue | undefined; channels(): number },
): EdgeMetrics {
  const registers = [registry];
  const reports = new Counter({
    name: "octet_edge_reports_total",
    help: "Reports by what the browser was told.",
    labelNames: ["code"],
    registers,
  });
  const attempts = new Counter({
    name: "octet_edge_forwards_total",
    help: "Attempts to forward a bundle, by what came of them.",
    labelNames: ["outcome"],
    registers,
  });
  const bundles = new Counter({
    name: "octet_edge_bundles_total",
    help: "Bundles by what came of them in the end; lost: not forwarded before the end.",
    labelNames: ["outcome"],
    registers,
  });
  const gauge = (name: string, help: string, value: () => number): void => {
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  };
  gauge("octet_edge_queue_bundles", "Bundles that wait or are under way.", () => watched.queue()?.size ?? 0);
  gauge("octet_edge_queue_bytes", "Their bytes.", () => watched.queue()?.bytes ?? 0);
  gauge("octet_edge_queue_flowing", "1 while bundles go out, 0 while nobody takes them.", () =>
    watched.queue()?.state === "flowing" ? 1 : 0,
  );
  gauge("octet_edge_channels", "Latency channels that are open.", () => watched.channels());
  return {
    report: (code) => reports.inc({ code }),
    attempt: (outcome) => attempts.inc({ outcome }),
    ended: (outcome) => bundles.inc({ outcome }),
    lost: (count) => bundles.inc({ outcome: "lost" }, count),
  };
}

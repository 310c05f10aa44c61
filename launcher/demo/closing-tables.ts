import { percentile } from "@octomesh/cli/fleet/call-statistics";
import { formatBytes } from "@octomesh/cli/format-bytes";
import type { Output } from "@octomesh/cli/output";
import type { StepOutcome } from "./main-job.ts";
import type { World } from "./world.ts";

/** Calls that the mesh holds open until something changes: how long they take says nothing. */
const heldOpen = new Set(["WatchDesiredState", "GetDesiredState"]);

/** Draws what happened, and the numbers that a user would ask for. */
export function closingTables(world: World, outcomes: readonly StepOutcome[], output: Output, totalMs: number): string {
  const { paint } = output;
  const parts = [
    output.table(outcomes, [
      { title: "STEP", value: ({ title }) => title },
      {
        title: "CHECKS",
        align: "right",
        value: ({ title }) => {
          const checks = world.checks.filter(({ chapter }) => chapter === title);
          return `${checks.filter(({ ok }) => ok).length}/${checks.length}`;
        },
      },
      { title: "TIME", align: "right", value: ({ durationMs }) => `${(durationMs / 1000).toFixed(1)} s` },
      { title: "", value: ({ ok }) => (ok ? paint.green("as it should be") : paint.red("NOT as it should be")) },
    ]),
  ];
  if (world.rolloutSteps.length > 0) {
    const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;
    parts.push(
      output.table(world.rolloutSteps, [
        { title: "ROLLOUT", value: ({ text }) => text },
        { title: "DEVICES", align: "right", value: ({ devices }) => String(devices) },
        { title: "HALF AFTER", align: "right", value: ({ latenciesMs }) => seconds(percentile(latenciesMs, 0.5)) },
        { title: "95 % AFTER", align: "right", value: ({ latenciesMs }) => seconds(percentile(latenciesMs, 0.95)) },
        { title: "ALL AFTER", align: "right", value: ({ latenciesMs }) => seconds(percentile(latenciesMs, 1)) },
      ]),
    );
  }
  const { fleet } = world;
  if (fleet !== undefined) {
    const calls = fleet.calls();
    const methods = Object.entries(calls.byMethod).filter(([method]) => !heldOpen.has(method));
    parts.push(
      output.table(methods, [
        { title: "CALLS OF DEVICES", value: ([method]) => method },
        { title: "NUMBER", align: "right", value: ([, figures]) => String(figures.calls) },
        { title: "P50", align: "right", value: ([, figures]) => `${figures.p50Ms.toFixed(1)} ms` },
        { title: "P95", align: "right", value: ([, figures]) => `${figures.p95Ms.toFixed(1)} ms` },
        { title: "P99", align: "right", value: ([, figures]) => `${figures.p99Ms.toFixed(1)} ms` },
      ]),
    );
    const versions = [...fleet.versions(world.modelId)].sort().map(([version, count]) => `${count} on ${version}`);
    const refused = Object.entries(calls.errorsByReason).map(([reason, count]) => `${count} ${reason}`);
    const facts: [string, string][] = [
      ["devices", versions.join(", ")],
      ["calls", `${calls.calls}, refused on purpose: ${refused.join(", ") || "none"}`],
      ["downloaded", formatBytes(fleet.downloadedBytes())],
      ["commands", `${world.commands.length} of octomil`],
      ["time", `${(totalMs / 1000).toFixed(1)} s`],
    ];
    parts.push(facts.map(([label, value]) => `${paint.dim(label.padEnd(12))}${value}`).join("\n"));
  }
  return parts.map((part) => part.replace(/^/gm, "   ")).join("\n\n");
}

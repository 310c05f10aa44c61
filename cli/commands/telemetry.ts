import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type AggregateKey,
  AggregateKey_CohortSchema,
  HealthAggregateSchema,
} from "@octomesh/proto/octomesh/telemetry/v1/health_report_pb";
import {
  LatencyAggregateSchema,
  LatencyReport_OperationSchema,
} from "@octomesh/proto/octomesh/telemetry/v1/latency_report_pb";
import {
  QualityAggregateSchema,
  QualityReport_MetricSchema,
} from "@octomesh/proto/octomesh/telemetry/v1/quality_report_pb";
import {
  RolloutProgress_StepSchema,
  RolloutProgressAggregateSchema,
} from "@octomesh/proto/octomesh/telemetry/v1/rollout_progress_pb";
import type { Clients } from "@octomesh/sdk";
import { checkId, isIdOf } from "../check-id.ts";
import { checkModelName } from "../check-model-name.ts";
import { checkVersionReference } from "../check-version.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { usageError } from "../command-error.ts";
import { formatBytes } from "../format-bytes.ts";
import { formatTime } from "../format-time.ts";
import type { Column } from "../output.ts";
import { choiceWord } from "../parse-choice.ts";
import { parseDuration } from "../parse-duration.ts";
import { resolveModel } from "../resolve-resource.ts";
import { readNames } from "../resource-names.ts";

const options = [
  ["--model <model>", "only this model, by name or id"],
  ["--version <version>", "only this version, by number (with --model) or id"],
  ["--rollout <id>", "only this rollout's cohorts"],
  ["--since <duration>", "from this long ago on; 1h if left out"],
  ["--width <duration>", "length of the stretches of time, whole minutes; 1m if left out, 1d at most"],
  ["--by-slice", "keep the 32 slices of each cohort apart"],
  ["--limit <number>", "how many to show, or all; 200 if left out"],
] as const;

interface Page<T> {
  aggregates: T[];
  nextPageToken: string;
}

interface Filter {
  modelId: string;
  versionId: string;
  rolloutId: string;
  startTime: ReturnType<typeof timestampFromMs>;
  width: ReturnType<typeof durationFromMs>;
  bySlice: boolean;
}

/** `octomil telemetry …`: what the fleet reports, summed up. */
export const telemetryCommands: readonly CommandSpec[] = [
  report("health", "Health of devices by time: power, heat, crashes, jobs", HealthAggregateSchema, {
    page: (clients, request) => clients.telemetry.listHealthAggregates(request),
    columns: [
      { title: "REPORTS", value: (item) => String(item.reports), align: "right" },
      { title: "DEVICES", value: (item) => String(item.devices), align: "right" },
      { title: "CRASHES", value: (item) => String(item.crashes), align: "right" },
      { title: "JOBS", value: (item) => `${item.jobsCompleted} ok, ${item.jobsFailed} failed` },
      { title: "BATTERY", value: (item) => `${item.batteryPercentMean.toFixed(0)} %`, align: "right" },
      { title: "HOT", value: (item) => String(item.hotReports), align: "right" },
    ],
  }),
  report("latency", "Latency of a model by version and time", LatencyAggregateSchema, {
    page: (clients, request) => clients.telemetry.listLatencyAggregates(request),
    columns: [
      { title: "OPERATION", value: (item) => choiceWord(LatencyReport_OperationSchema, item.operation) },
      { title: "COUNT", value: (item) => String(item.count), align: "right" },
      { title: "ERRORS", value: (item) => String(item.errors), align: "right" },
      { title: "P50 MS", value: (item) => item.p50Ms.toFixed(2), align: "right" },
      { title: "P95 MS", value: (item) => item.p95Ms.toFixed(2), align: "right" },
      { title: "P99 MS", value: (item) => item.p99Ms.toFixed(2), align: "right" },
      { title: "MAX MS", value: (item) => item.maxMs.toFixed(2), align: "right" },
    ],
  }),
  report(
    "quality",
    "Quality of a model by version and time, by figures that devices computed",
    QualityAggregateSchema,
    {
      page: (clients, request) => clients.telemetry.listQualityAggregates(request),
      columns: [
        { title: "METRIC", value: (item) => choiceWord(QualityReport_MetricSchema, item.metric) },
        { title: "REPORTS", value: (item) => String(item.reports), align: "right" },
        { title: "SAMPLES", value: (item) => String(item.samples), align: "right" },
        { title: "MEAN", value: (item) => item.mean.toFixed(4), align: "right" },
        { title: "MIN", value: (item) => item.min.toFixed(4), align: "right" },
        { title: "MAX", value: (item) => item.max.toFixed(4), align: "right" },
      ],
    },
  ),
  report("progress", "Steps of devices in rollouts by time", RolloutProgressAggregateSchema, {
    page: (clients, request) => clients.telemetry.listRolloutProgressAggregates(request),
    columns: [
      { title: "STEP", value: (item) => choiceWord(RolloutProgress_StepSchema, item.step) },
      { title: "COUNT", value: (item) => String(item.count), align: "right" },
      { title: "BYTES", value: (item) => formatBytes(Number(item.bytes)), align: "right" },
      { title: "MEAN S", value: (item) => item.durationSecondsMean.toFixed(2), align: "right" },
    ],
  }),
];

function report<Desc extends DescMessage>(
  name: string,
  summary: string,
  schema: Desc,
  kind: {
    page(
      clients: Clients,
      request: { pageSize: number; pageToken: string; filter: Filter },
    ): Promise<Page<MessageShape<Desc> & { key?: AggregateKey }>>;
    columns: readonly Column<MessageShape<Desc>>[];
  },
): CommandSpec {
  return {
    name,
    summary,
    options,
    examples: [`telemetry ${name} --model vad --since 1h`, `telemetry ${name} --model vad --version 1.1.0 --json`],
    async run(context: CommandContext, input: CommandInput) {
      const limit = parseLimit(input.text("limit"));
      const wanted = readWanted(context, input);
      const { clients } = await context.connect();
      const filter = await filterOf(clients, wanted);
      const { items, truncated } = await collectPages<MessageShape<Desc> & { key?: AggregateKey }>(
        limit,
        async (pageSize, pageToken) => {
          const answer = await kind.page(clients, { pageSize, pageToken, filter });
          return { items: answer.aggregates, nextPageToken: answer.nextPageToken };
        },
      );
      const keyOf = (item: MessageShape<Desc>): AggregateKey | undefined => (item as { key?: AggregateKey }).key;
      const forPeople = !context.output.json && !context.output.quiet;
      const named = forPeople ? items.flatMap(({ key }) => (key === undefined ? [] : [key])) : [];
      const names = await readNames(clients, named);
      const keyColumns: Column<MessageShape<Desc>>[] = [
        { title: "TIME", value: (item) => formatTime(keyOf(item)?.startTime) },
        { title: "MODEL", value: (item) => names.model(keyOf(item)?.modelId ?? "") || "-" },
        { title: "VERSION", value: (item) => names.version(keyOf(item)?.versionId ?? "") || "-" },
        { title: "ROLLOUT", value: (item) => keyOf(item)?.rolloutId || "-" },
        { title: "COHORT", value: (item) => choiceWord(AggregateKey_CohortSchema, keyOf(item)?.cohort ?? 0) },
      ];
      if (filter.bySlice) keyColumns.push({ title: "SLICE", value: (item) => String(keyOf(item)?.slice ?? -1) });
      context.output.list({
        schema,
        key: "aggregates",
        items,
        truncated,
        empty: "Nothing was reported in that time.",
        columns: [...keyColumns, ...kind.columns],
      });
    },
  };
}

/** What the person asks for, in the person's words. */
interface Wanted extends Omit<Filter, "modelId" | "versionId"> {
  model: string | undefined;
  version: string | undefined;
}

/** Reads the options of a report before anything is sent. Throws usage errors. */
function readWanted(context: CommandContext, input: CommandInput): Wanted {
  const [model, version, rollout] = [input.text("model"), input.text("version"), input.text("rollout")];
  const widthSeconds = parseDuration(input.text("width") ?? "1m");
  if (widthSeconds % 60 !== 0 || widthSeconds > 86_400) throw usageError("--width is whole minutes, a day at most");
  const since = parseDuration(input.text("since") ?? "1h");
  if (version !== undefined && !isIdOf("mvr", checkVersionReference(version)) && model === undefined) {
    throw usageError("--version by number needs --model");
  }
  return {
    model: model === undefined ? undefined : checkModelName(model),
    version,
    rolloutId: rollout === undefined ? "" : checkId("rol", rollout),
    startTime: timestampFromMs(context.terminal.now() - since * 1000),
    width: durationFromMs(widthSeconds * 1000),
    bySlice: input.flag("by-slice"),
  };
}

async function filterOf(clients: Clients, { model, version, ...rest }: Wanted): Promise<Filter> {
  let versionId = "";
  if (version !== undefined) {
    versionId = isIdOf("mvr", version)
      ? version
      : (await clients.modelVersions.getModelVersion({ modelId: model ?? "", version })).id;
  }
  return { ...rest, modelId: model === undefined ? "" : await resolveModel(clients, model), versionId };
}

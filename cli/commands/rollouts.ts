import { create as createMessage } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { CallerKindSchema } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import {
  type Rollout,
  Rollout_PlanSchema,
  Rollout_StateSchema,
  RolloutSchema,
  RolloutTransitionSchema,
} from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import type { Clients } from "@octomesh/sdk";
import { checkId } from "../check-id.ts";
import { checkModelName } from "../check-model-name.ts";
import { checkVersionReference } from "../check-version.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { usageError } from "../command-error.ts";
import { describeTransition } from "../describe-transition.ts";
import { formatTime } from "../format-time.ts";
import { choiceWord, parseChoice } from "../parse-choice.ts";
import { parseDuration } from "../parse-duration.ts";
import { formatPercentage, parsePercentage } from "../parse-percentage.ts";
import { resolveGroup } from "../resolve-resource.ts";
import { type ResourceNames, readNames } from "../resource-names.ts";
import { watchRollout } from "./rollouts-watch.ts";

const rolloutArgument = ["<id>", "id of the rollout, rol_…"] as const;
const reasonOption = ["--reason <text>", "why, for the record"] as const;

type Step = (clients: Clients, request: { id: string; reason: string }) => Promise<Rollout>;

/** `octomil rollouts …`: versions reaching devices, by stages. */
export const rolloutCommands: readonly CommandSpec[] = [
  {
    name: "create",
    summary: "Create a rollout of a model's version",
    details:
      "Percentages have up to three decimals. Which devices come first is decided by the published bucket function and " +
      "stays so: a device that has the version keeps it as the percentage grows.",
    args: [
      ["<model>", "name or id of the model"],
      ["<version>", "the version, such as 1.1.0, or its id"],
    ],
    options: [
      ["--percentage <percent>", "the share of the target to begin with, such as 10 or 12.5"],
      ["--stages <list>", "several shares in order instead, such as 1,10,50,100"],
      ["--group <group>...", "only devices of this group, by id or name; may be repeated"],
      ["--control <percent>", "the share that is kept out for comparison until completion, 50 at most"],
      ["--priority <number>", "where rollouts overlap, the higher wins; 0 to 1000"],
      ["--min-dwell <duration>", "how long every stage lasts at least"],
      ["--min-sample <number>", "how many devices must have reported in every stage"],
      ["--approve-stages", "every stage waits for octomil rollouts approve"],
      ["--schedule <time>", "when it starts, such as 2026-05-01T06:00:00Z"],
      ["--start", "start it at once"],
    ],
    examples: [
      "rollouts create vad 1.0.0 --percentage 100 --start",
      "rollouts create vad 1.1.0 --percentage 12.5",
      "rollouts create vad 1.2.0 --stages 1,10,50,100 --group pilots --min-dwell 1h",
    ],
    run: create,
  },
  {
    name: "list",
    summary: "List rollouts, newest first",
    options: [
      ["--model <model>", "only rollouts of this model, by name or id"],
      ["--state <state>", "only rollouts in this state, such as running or completed"],
      ["--limit <number>", "how many to show, or all; 200 if left out"],
    ],
    examples: ["rollouts list", "rollouts list --model vad --state running"],
    run: list,
  },
  { name: "get", summary: "Show one rollout", args: [rolloutArgument], examples: ["rollouts get rol_…"], run: get },
  step("start", "Start a rollout", "is started", (clients, request) => clients.rollouts.startRollout(request)),
  {
    name: "set-percentage",
    summary: "Set the exposed share of a running rollout; it only grows",
    args: [rolloutArgument, ["<percent>", "the share, such as 50 or 12.5"]],
    options: [reasonOption],
    examples: ["rollouts set-percentage rol_… 50", "rollouts set-percentage rol_… 12.5"],
    async run(context, input) {
      const id = checkId("rol", input.args[0] ?? "");
      const percentageThousandths = parsePercentage(input.args[1] ?? "");
      const { clients } = await context.connect();
      const rollout = await clients.rollouts.setRolloutPercentage({
        id,
        percentageThousandths,
        reason: input.text("reason") ?? "",
      });
      await show(context, clients, rollout, `now reaches ${formatPercentage(rollout.percentageThousandths)}`);
    },
  },
  step(
    "pause",
    "Pause a rollout: devices that have the version keep it, no others get it",
    "is paused",
    (clients, request) => clients.rollouts.pauseRollout(request),
  ),
  step("resume", "Go on with a paused rollout", "goes on", (clients, request) =>
    clients.rollouts.resumeRollout(request),
  ),
  step("complete", "Complete a rollout that has reached 100 %", "is completed", (clients, request) =>
    clients.rollouts.completeRollout(request),
  ),
  step("rollback", "Return every exposed device to the prior version", "is rolled back", (clients, request) =>
    clients.rollouts.rollBackRollout(request),
  ),
  step("abort", "End a rollout that has not delivered anything", "is aborted", (clients, request) =>
    clients.rollouts.abortRollout(request),
  ),
  step("approve", "Approve the stage that a rollout waits at", "is approved", (clients, request) =>
    clients.rollouts.approveRolloutStage(request),
  ),
  {
    name: "history",
    summary: "List the steps in a rollout's life, oldest first",
    args: [rolloutArgument],
    options: [["--limit <number>", "how many to show, or all; 200 if left out"]],
    examples: ["rollouts history rol_…"],
    run: history,
  },
  {
    name: "delete",
    summary: "Delete a rollout that delivers nothing: a draft, or one that was aborted or rolled back",
    args: [rolloutArgument],
    examples: ["rollouts delete rol_…"],
    async run(context, input) {
      const id = checkId("rol", input.args[0] ?? "");
      const { clients } = await context.connect();
      await clients.rollouts.deleteRollout({ id });
      context.output.result({ deleted: id }, `Rollout ${id} is deleted.`);
    },
  },
  {
    name: "watch",
    summary: "Follow a rollout: its steps, and how many devices run the version",
    details:
      "Ends when the rollout does, when --until is reached, or with Ctrl-C. With --json it prints the end alone.",
    args: [rolloutArgument],
    options: [
      ["--until <percent>", "end when this share of the devices that report the model runs the version"],
      ["--interval <duration>", "how often to look; 2s if left out"],
      ["--timeout <duration>", "give up after this time, with exit code 5"],
    ],
    examples: ["rollouts watch rol_…", "rollouts watch rol_… --until 50 --timeout 10m --json"],
    run: watchRollout,
  },
];

async function create(context: CommandContext, input: CommandInput): Promise<void> {
  const modelId = checkModelName(input.args[0] ?? "");
  const version = checkVersionReference(input.args[1] ?? "");
  const percentage = input.text("percentage");
  const stageList = input.text("stages");
  if (percentage !== undefined && stageList !== undefined)
    throw usageError("--percentage and --stages exclude each other");
  if (percentage === undefined && stageList === undefined) {
    throw usageError("--percentage is missing", "Give --percentage 10, or several stages as --stages 1,10,50,100.");
  }
  const shares = parseStages(stageList ?? percentage ?? "");
  const dwell = input.text("min-dwell");
  const minDwell = dwell === undefined ? undefined : durationFromMs(parseDuration(dwell) * 1000);
  const minSample = BigInt(input.integer("min-sample", { min: 0, max: 1_000_000_000, fallback: 0 }));
  const control = input.text("control");
  const schedule = parseTime(input.text("schedule"));
  const priority = input.integer("priority", { min: 0, max: 1000, fallback: 0 });
  const { clients } = await context.connect();
  const groupIds: string[] = [];
  for (const group of input.texts("group")) groupIds.push(await resolveGroup(clients, group));
  const rollout = await clients.rollouts.createRollout({
    modelId,
    version,
    target: { groupIds },
    plan: createMessage(Rollout_PlanSchema, {
      stages: shares.map((percentageThousandths) => ({
        percentageThousandths,
        minDwell,
        minSample,
        approvalRequired: input.flag("approve-stages"),
      })),
      controlThousandths: control === undefined ? 0 : parsePercentage(control),
      scheduleTime: schedule === undefined ? undefined : timestampFromMs(schedule),
    }),
    priority,
    start: input.flag("start"),
  });
  await show(
    context,
    clients,
    rollout,
    `of ${rollout.version} is ${input.flag("start") ? "created and started" : "a draft"}`,
  );
}

/** Reads the shares of a plan, such as `1,10,50,100`: in thousandths of a percent, each greater than the one before. */
export function parseStages(text: string): number[] {
  const shares = text.split(",").map(parsePercentage);
  if (shares.length > 32) throw usageError("a plan has 32 stages at most");
  for (const [index, share] of shares.entries()) {
    const before = shares[index - 1];
    if (before !== undefined && share <= before) throw usageError("every stage is greater than the one before");
  }
  return shares;
}

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const stateWord = input.text("state");
  const state = stateWord === undefined ? 0 : parseChoice(Rollout_StateSchema, "state", stateWord);
  const model = input.text("model");
  const modelId = model === undefined ? "" : checkModelName(model);
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.rollouts.listRollouts({
      pageSize,
      pageToken,
      modelId,
      state,
    });
    return { items: answer.rollouts, nextPageToken: answer.nextPageToken };
  });
  const names = await namesOf(context, clients, items);
  context.output.list({
    schema: RolloutSchema,
    key: "rollouts",
    items,
    truncated,
    empty: "No rollouts.",
    columns: [
      { title: "ID", value: (rollout) => rollout.id },
      { title: "MODEL", value: (rollout) => names.model(rollout.modelId) },
      { title: "VERSION", value: (rollout) => rollout.version },
      { title: "STATE", value: (rollout) => choiceWord(Rollout_StateSchema, rollout.state) },
      { title: "SHARE", value: (rollout) => formatPercentage(rollout.percentageThousandths), align: "right" },
      { title: "PRIOR", value: (rollout) => rollout.priorVersion || "-" },
      { title: "STARTED", value: (rollout) => formatTime(rollout.startTime, "-") },
    ],
  });
}

async function get(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("rol", input.args[0] ?? "");
  const { clients } = await context.connect();
  const rollout = await clients.rollouts.getRollout({ id });
  const names = await namesOf(context, clients, [rollout]);
  context.output.show({ schema: RolloutSchema, item: rollout, facts: rolloutFacts(rollout, names) });
}

async function history(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const rolloutId = checkId("rol", input.args[0] ?? "");
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.rollouts.listRolloutTransitions({
      rolloutId,
      pageSize,
      pageToken,
    });
    return { items: answer.transitions, nextPageToken: answer.nextPageToken };
  });
  context.output.list<typeof RolloutTransitionSchema>({
    schema: RolloutTransitionSchema,
    key: "transitions",
    items,
    truncated,
    empty: "Nothing has happened yet.",
    columns: [
      { title: "TIME", value: (item) => formatTime(item.createTime) },
      { title: "STEP", value: describeTransition },
      { title: "SHARE", value: (item) => formatPercentage(item.percentageThousandths), align: "right" },
      { title: "BY", value: (item) => `${choiceWord(CallerKindSchema, item.actorKind)} ${item.actorId}` },
      { title: "REASON", value: (item) => item.reason },
    ],
  });
}

function step(name: string, summary: string, outcome: string, call: Step): CommandSpec {
  return {
    name,
    summary,
    args: [rolloutArgument],
    options: [reasonOption],
    examples: [`rollouts ${name} rol_…`, `rollouts ${name} rol_… --reason "…"`],
    async run(context, input) {
      const id = checkId("rol", input.args[0] ?? "");
      const { clients } = await context.connect();
      const rollout = await call(clients, { id, reason: input.text("reason") ?? "" });
      await show(context, clients, rollout, outcome);
    },
  };
}

async function show(context: CommandContext, clients: Clients, rollout: Rollout, outcome: string): Promise<void> {
  const names = await namesOf(context, clients, [rollout]);
  context.output.show({
    schema: RolloutSchema,
    item: rollout,
    headline: `Rollout ${rollout.id} ${outcome}.`,
    facts: rolloutFacts(rollout, names).slice(1),
  });
}

/** The names of the rollouts' models, for people; programs get ids and cause no further call. */
function namesOf(context: CommandContext, clients: Clients, rollouts: readonly Rollout[]): Promise<ResourceNames> {
  const forPeople = !context.output.json && !context.output.quiet;
  return readNames(clients, forPeople ? rollouts.map(({ modelId }) => ({ modelId })) : []);
}

function rolloutFacts(rollout: Rollout, names: ResourceNames): [string, string][] {
  const stages = rollout.plan?.stages ?? [];
  return [
    ["id", rollout.id],
    ["model", names.model(rollout.modelId)],
    ["version", rollout.version],
    ["state", choiceWord(Rollout_StateSchema, rollout.state)],
    ["share", formatPercentage(rollout.percentageThousandths)],
    [
      "stages",
      stages.length > 1 ? stages.map((stage) => formatPercentage(stage.percentageThousandths)).join(", ") : "",
    ],
    ["control", rollout.plan?.controlThousandths ? formatPercentage(rollout.plan.controlThousandths) : ""],
    ["groups", rollout.target?.groupIds.join(", ") ?? ""],
    ["prior version", rollout.priorVersion],
    ["salt", rollout.salt],
    ["created", formatTime(rollout.createTime)],
    ["started", formatTime(rollout.startTime)],
    ["ended", formatTime(rollout.endTime)],
  ];
}

function parseTime(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const time = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2})?(\.\d+)?(Z|[+-]\d{2}:\d{2})$/.test(text)
    ? Date.parse(text)
    : Number.NaN;
  if (Number.isNaN(time))
    throw usageError(`"${text.slice(0, 40)}" is not a time`, "Give one such as 2026-05-01T06:00:00Z.");
  return time;
}

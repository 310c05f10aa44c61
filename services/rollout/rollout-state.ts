import { type Plan, type RolloutState, wholeThousandths } from "./rollout.ts";

/** What of a rollout decides which steps are open to it. */
export interface Position {
  readonly state: RolloutState;
  /** The stage that it is in, or that it waits at. */
  readonly stageIndex: number;
  /** The share that is exposed now, in thousandths of a percent. */
  readonly percentageThousandths: number;
  /** When the present stage began, or went on after a pause; milliseconds since the Unix epoch. */
  readonly stageTimeMs?: number;
}

/** A step that somebody wants to take. The last three are taken by the service itself. */
export type Action =
  | { readonly kind: "start" }
  | { readonly kind: "set_percentage"; readonly percentageThousandths: number }
  | { readonly kind: "approve" }
  | { readonly kind: "pause" }
  | { readonly kind: "resume" }
  | { readonly kind: "complete" }
  | { readonly kind: "roll_back" }
  | { readonly kind: "abort" }
  | { readonly kind: "delete" }
  | { readonly kind: "schedule_due" }
  | { readonly kind: "stage_due" }
  | { readonly kind: "devices_told" };

/** Why a step is refused. */
export interface Refusal {
  readonly kind: "illegal_transition" | "percentage_not_monotone";
  readonly message: string;
}

/** What a step leads to: a new position, nothing (it has been taken already), the end of the record, or a refusal. */
export type Outcome =
  | { readonly kind: "moved"; readonly position: Position }
  | { readonly kind: "unchanged" }
  | { readonly kind: "deleted" }
  | { readonly kind: "refused"; readonly refusal: Refusal };

/** Rollouts in these states hold their model and target: there is at most one. */
export const activeStates: readonly RolloutState[] = [
  "awaiting_approval",
  "scheduled",
  "running",
  "paused",
  "rolling_back",
];

/** Rollouts in these states say what devices are to run, or have just ceased to. */
export const decidingStates: readonly RolloutState[] = [
  "awaiting_approval",
  "running",
  "paused",
  "rolling_back",
  "completed",
];

/**
 * How long a rollback lasts at least: until its definitions have come to every replica, which takes a fraction of this.
 */
export const rollbackSettleMs = 2_000;

/**
 * The state machine of a rollout: what `action` leads to from `position` at the time `nowMs`. Pure and total: every
 * action has an answer in every state; docs/rollouts.md holds the table, and a test compares the two.
 *
 * Repeating the step that led to the present state answers `unchanged`, so that a retry after a lost answer succeeds.
 */
export function nextPosition(position: Position, plan: Plan, action: Action, nowMs: number): Outcome {
  const { state, percentageThousandths: exposed } = position;
  const settled = (next: Partial<Position>): Outcome => ({ kind: "moved", position: { ...position, ...next } });
  switch (action.kind) {
    case "start":
      if (state === "scheduled" || state === "running" || state === "awaiting_approval") return unchanged;
      if (state !== "draft") return illegal(state, "start", "only a draft starts");
      if (plan.scheduleTimeMs !== undefined && plan.scheduleTimeMs > nowMs) return settled({ state: "scheduled" });
      return moved(enterStage(position, plan, 0, nowMs));
    case "schedule_due":
      if (state !== "scheduled") return illegal(state, "schedule_due", "it is not scheduled");
      if (plan.scheduleTimeMs !== undefined && plan.scheduleTimeMs > nowMs) return unchanged;
      return moved(enterStage(position, plan, 0, nowMs));
    case "set_percentage":
      return setPercentage(position, plan, action.percentageThousandths, nowMs);
    case "approve":
      if (state !== "awaiting_approval") return illegal(state, "approve", "no stage waits for approval");
      return moved(beginStage(position, plan, position.stageIndex, nowMs));
    case "stage_due":
      if (state !== "running") return illegal(state, "stage_due", "it is not running");
      if (!stageIsOver(position, plan, nowMs)) return unchanged;
      return moved(enterStage(position, plan, position.stageIndex + 1, nowMs));
    case "pause":
      if (state === "paused") return unchanged;
      if (state !== "running") return illegal(state, "pause", "only a running rollout pauses");
      return settled({ state: "paused" });
    case "resume":
      if (state === "running") return unchanged;
      if (state !== "paused") return illegal(state, "resume", "only a paused rollout resumes");
      return settled({ state: "running", stageTimeMs: nowMs });
    case "complete":
      if (state === "completed") return unchanged;
      if (state !== "running") return illegal(state, "complete", "only a running rollout completes");
      if (exposed < wholeThousandths) return illegal(state, "complete", "it has not reached 100 %");
      return settled({ state: "completed" });
    case "roll_back":
      if (state === "rolling_back" || state === "rolled_back") return unchanged;
      if (state !== "running" && state !== "paused" && state !== "awaiting_approval" && state !== "completed") {
        return illegal(state, "roll_back", "it has delivered nothing");
      }
      if (exposed === 0) return illegal(state, "roll_back", "it has delivered nothing; abort it instead");
      return settled({ state: "rolling_back", percentageThousandths: 0, stageTimeMs: nowMs });
    case "devices_told":
      if (state === "rolled_back") return unchanged;
      if (state !== "rolling_back") return illegal(state, "devices_told", "it is not rolling back");
      return settled({ state: "rolled_back" });
    case "abort":
      if (state === "aborted") return unchanged;
      if (state === "completed" || state === "rolling_back" || state === "rolled_back") {
        return illegal(state, "abort", "it has delivered already");
      }
      if (exposed > 0) return illegal(state, "abort", "it has delivered already; roll it back instead");
      return settled({ state: "aborted" });
    case "delete":
      if (state === "draft" || state === "aborted" || state === "rolled_back") return { kind: "deleted" };
      return illegal(state, "delete", "only a draft, an aborted or a rolled back rollout is deleted");
  }
}

/**
 * When time alone will move a rollout on, milliseconds since the Unix epoch; undefined where it never will.
 * A stage ends by itself only if its plan says how long it lasts and asks for no sample.
 */
export function dueTimeOf(position: Position, plan: Plan): number | undefined {
  if (position.state === "scheduled") return plan.scheduleTimeMs ?? 0;
  if (position.state === "rolling_back") return (position.stageTimeMs ?? 0) + rollbackSettleMs;
  if (position.state !== "running" || position.stageTimeMs === undefined) return undefined;
  const stage = plan.stages[position.stageIndex];
  if (stage === undefined || position.stageIndex + 1 >= plan.stages.length) return undefined;
  if (stage.minDwellMs <= 0 || stage.minSample > 0) return undefined;
  return position.stageTimeMs + stage.minDwellMs;
}

const unchanged: Outcome = { kind: "unchanged" };

function stageIsOver(position: Position, plan: Plan, nowMs: number): boolean {
  const due = dueTimeOf(position, plan);
  return due !== undefined && due <= nowMs;
}

function setPercentage(position: Position, plan: Plan, share: number, nowMs: number): Outcome {
  if (position.state !== "running") {
    return illegal(position.state, "set_percentage", "only a running rollout grows");
  }
  if (share < position.percentageThousandths) {
    const message = `the share is ${percent(position.percentageThousandths)} and only grows, so it cannot be set to ${percent(share)}: to go back, roll the rollout back`;
    return { kind: "refused", refusal: { kind: "percentage_not_monotone", message } };
  }
  if (share === position.percentageThousandths) return unchanged;
  let stageIndex = position.stageIndex;
  for (let index = stageIndex + 1; index < plan.stages.length; index++) {
    const stage = plan.stages[index];
    if (stage === undefined || stage.percentageThousandths > share) break;
    // Nobody passes a stage that a member must approve, not even by asking for a greater share.
    if (stage.approvalRequired) return moved(enterStage(position, plan, index, nowMs));
    stageIndex = index;
  }
  return moved({ state: "running", stageIndex, percentageThousandths: share, stageTimeMs: nowMs });
}

// Thousandths of a percent as people read them: 12500 is 12.5 %.
function percent(thousandths: number): string {
  return `${thousandths / 1000} %`;
}

function enterStage(position: Position, plan: Plan, index: number, nowMs: number): Position {
  if (plan.stages[index]?.approvalRequired === true) {
    return { ...position, state: "awaiting_approval", stageIndex: index, stageTimeMs: nowMs };
  }
  return beginStage(position, plan, index, nowMs);
}

function beginStage(position: Position, plan: Plan, index: number, nowMs: number): Position {
  const share = plan.stages[index]?.percentageThousandths ?? 0;
  return {
    state: "running",
    stageIndex: index,
    percentageThousandths: Math.max(position.percentageThousandths, share),
    stageTimeMs: nowMs,
  };
}

function moved(position: Position): Outcome {
  return { kind: "moved", position };
}

function illegal(state: RolloutState, action: Action["kind"], why: string): Outcome {
  const message = `a rollout that is ${state.replaceAll("_", " ")} cannot ${verbs[action]}: ${why}`;
  return { kind: "refused", refusal: { kind: "illegal_transition", message } };
}

const verbs: Record<Action["kind"], string> = {
  start: "be started",
  set_percentage: "change its share",
  approve: "be approved",
  pause: "be paused",
  resume: "be resumed",
  complete: "be completed",
  roll_back: "be rolled back",
  abort: "be aborted",
  delete: "be deleted",
  schedule_due: "begin by schedule",
  stage_due: "go on to its next stage",
  devices_told: "end its rollback",
};

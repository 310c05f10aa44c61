/** Where a rollout stands; what each state means is in docs/rollouts.md. */
export type RolloutState =
  | "draft"
  | "awaiting_approval"
  | "scheduled"
  | "running"
  | "paused"
  | "rolling_back"
  | "completed"
  | "rolled_back"
  | "aborted";

/** Every state, in the order of the contract's enum. */
export const rolloutStates: readonly RolloutState[] = [
  "draft",
  "awaiting_approval",
  "scheduled",
  "running",
  "paused",
  "rolling_back",
  "completed",
  "rolled_back",
  "aborted",
];

/** One hundred percent, in thousandths of a percent: the unit of every share here. */
export const wholeThousandths = 100_000;

/** One stage of a plan. */
export interface Stage {
  /** The share of the target that is exposed: 0 to 100,000 thousandths of a percent. */
  readonly percentageThousandths: number;
  /** How long the stage lasts at least. Over 0, the stage ends by itself when this time is over. */
  readonly minDwellMs: number;
  /** How many devices must have reported; over 0, the stage never ends by itself. */
  readonly minSample: number;
  /** Whether a member must approve the stage before it begins. */
  readonly approvalRequired: boolean;
}

/** How a rollout grows. */
export interface Plan {
  /** At least one; each with a greater share than the one before. */
  readonly stages: readonly Stage[];
  /** The share kept out for comparison until completion: 0 to 50,000. */
  readonly controlThousandths: number;
  /** When the rollout starts, milliseconds since the Unix epoch; at once if absent. */
  readonly scheduleTimeMs?: number;
}

/** A rollout as it is stored. Times are milliseconds since the Unix epoch. */
export interface Rollout {
  readonly orgId: string;
  readonly id: string;
  readonly modelId: string;
  readonly versionId: string;
  readonly version: string;
  /** Sorted; empty means all devices of the organisation. */
  readonly groupIds: readonly string[];
  readonly plan: Plan;
  readonly state: RolloutState;
  readonly stageIndex: number;
  readonly percentageThousandths: number;
  readonly salt: string;
  readonly priority: number;
  /** Id of the version that exposed devices return to; "" if there is none. */
  readonly priorVersionId: string;
  readonly priorVersion: string;
  readonly createTimeMs: number;
  readonly updateTimeMs: number;
  readonly startTimeMs?: number;
  readonly stageTimeMs?: number;
  readonly endTimeMs?: number;
  /** Raised by every change. */
  readonly revision: bigint;
  /** Position among the organisation's rollouts, in order of creation. */
  readonly sequence: bigint;
}

/** One text for one target: rollouts with the same key are for the same devices. Group ids in any order, no duplicates. */
export function targetKeyOf(groupIds: readonly string[]): string {
  return [...groupIds].sort().join(",");
}

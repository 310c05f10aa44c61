import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, durationMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { CallerKind } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import {
  type Rollout_Plan,
  Rollout_State,
  type Rollout as RolloutMessage,
  RolloutSchema,
  type RolloutTransition,
  RolloutTransitionSchema,
} from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { type Plan, type Rollout, type RolloutState, rolloutStates } from "./rollout.ts";
import { etagOf } from "./store/models.ts";
import type { TransitionRow } from "./store/rollouts.ts";

const wireStates: Record<RolloutState, Rollout_State> = {
  draft: Rollout_State.DRAFT,
  awaiting_approval: Rollout_State.AWAITING_APPROVAL,
  scheduled: Rollout_State.SCHEDULED,
  running: Rollout_State.RUNNING,
  paused: Rollout_State.PAUSED,
  rolling_back: Rollout_State.ROLLING_BACK,
  completed: Rollout_State.COMPLETED,
  rolled_back: Rollout_State.ROLLED_BACK,
  aborted: Rollout_State.ABORTED,
};

/** The state that a value of the contract's enum names; undefined for UNSPECIFIED. */
export function stateOfWire(state: Rollout_State): RolloutState | undefined {
  return rolloutStates.find((each) => wireStates[each] === state);
}

/** A rollout in the form of the contract. */
export function rolloutMessage(rollout: Rollout): RolloutMessage {
  return create(RolloutSchema, {
    id: rollout.id,
    orgId: rollout.orgId,
    modelId: rollout.modelId,
    versionId: rollout.versionId,
    version: rollout.version,
    target: { groupIds: [...rollout.groupIds] },
    plan: planMessage(rollout.plan),
    state: wireStates[rollout.state],
    stageIndex: rollout.stageIndex,
    percentageThousandths: rollout.percentageThousandths,
    salt: rollout.salt,
    priority: rollout.priority,
    priorVersionId: rollout.priorVersionId,
    priorVersion: rollout.priorVersion,
    createTime: timestampFromMs(rollout.createTimeMs),
    updateTime: timestampFromMs(rollout.updateTimeMs),
    ...(rollout.startTimeMs === undefined ? {} : { startTime: timestampFromMs(rollout.startTimeMs) }),
    ...(rollout.endTimeMs === undefined ? {} : { endTime: timestampFromMs(rollout.endTimeMs) }),
    etag: etagOf(rollout.revision),
  });
}

/** A plan of the contract in the form of the domain. What is not given is zero. */
export function planOfMessage(message: Rollout_Plan | undefined): Plan {
  return {
    stages: (message?.stages ?? []).map((stage) => ({
      percentageThousandths: stage.percentageThousandths,
      minDwellMs: stage.minDwell === undefined ? 0 : Math.ceil(durationMs(stage.minDwell)),
      minSample: Number(stage.minSample),
      approvalRequired: stage.approvalRequired,
    })),
    controlThousandths: message?.controlThousandths ?? 0,
    ...(message?.scheduleTime === undefined ? {} : { scheduleTimeMs: Math.ceil(timestampMs(message.scheduleTime)) }),
  };
}

/** A step of a rollout's life in the form of the contract. */
export function transitionMessage(row: TransitionRow): RolloutTransition {
  return create(RolloutTransitionSchema, {
    id: row.id,
    rolloutId: row.rollout_id,
    fromState: row.from_state === "" ? Rollout_State.UNSPECIFIED : wireStates[row.from_state],
    toState: wireStates[row.to_state],
    percentageThousandths: row.percentage_thousandths,
    actorKind: wireKinds[row.actor_kind] ?? CallerKind.UNSPECIFIED,
    actorId: row.actor_id,
    reason: row.reason,
    createTime: timestampFromMs(row.create_time.getTime()),
  });
}

/** Those of mesh/caller.ts that may take a step. */
const wireKinds: Record<string, CallerKind> = {
  session: CallerKind.SESSION,
  api_key: CallerKind.API_KEY,
  system: CallerKind.SYSTEM,
};

function planMessage(plan: Plan): MessageInitShape<typeof RolloutSchema>["plan"] {
  return {
    stages: plan.stages.map((stage) => ({
      percentageThousandths: stage.percentageThousandths,
      ...(stage.minDwellMs === 0 ? {} : { minDwell: durationFromMs(stage.minDwellMs) }),
      minSample: BigInt(stage.minSample),
      approvalRequired: stage.approvalRequired,
    })),
    controlThousandths: plan.controlThousandths,
    ...(plan.scheduleTimeMs === undefined ? {} : { scheduleTime: timestampFromMs(plan.scheduleTimeMs) }),
  };
}

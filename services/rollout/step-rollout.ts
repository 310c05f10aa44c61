import { toBinary } from "@bufbuild/protobuf";
import type { Call } from "@octomesh/mesh/call";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { appendOutbox } from "@octomesh/mesh/outbox";
import { RolloutSchema } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { definitionsTopic } from "./definitions.ts";
import { type Rollout, type RolloutState, targetKeyOf } from "./rollout.ts";
import { rolloutMessage } from "./rollout-message.ts";
import { type Action, nextPosition } from "./rollout-state.ts";
import { getModelVersion } from "./store/model-versions.ts";
import {
  decidingCompleted,
  deleteRollout,
  getRollout,
  moveRollout,
  priorRollout,
  raiseRevision,
  type Step,
} from "./store/rollouts.ts";
import type { Tx } from "./store/tables.ts";

/** A step that somebody asks for. */
export interface StepRequest {
  readonly id: string;
  readonly action: Action;
  /** Why, for the record. */
  readonly reason: string;
  readonly nowMs: number;
}

/** What became of it. */
export interface StepResult {
  readonly rollout: Rollout;
  /** False where the step had been taken before. */
  readonly changed: boolean;
}

/**
 * Takes one step of a rollout's state machine in a transaction: puts it in order with the organisation's other changes,
 * moves the row, records who did it and why, and announces it to the watchers of definitions. Refuses with the reason
 * of the state machine, ROLLOUT_CONFLICT, or VERSION_NOT_READY.
 */
export async function stepRollout(tx: Tx, call: Call, request: StepRequest): Promise<StepResult> {
  const { orgId } = call;
  const { id, action, nowMs } = request;
  await raiseRevision(tx, orgId);
  const rollout = await getRollout(tx, orgId, id);
  call.audit?.resource("rollout", id);
  const outcome = nextPosition(rollout, rollout.plan, action, nowMs);
  if (outcome.kind === "refused") throw refusal(rollout, action, outcome.refusal);
  if (outcome.kind === "unchanged") {
    call.audit?.skip("unchanged");
    return { rollout, changed: false };
  }
  if (outcome.kind === "deleted") {
    await deleteRollout(tx, orgId, id);
    // Nobody was told of a draft.
    if (rollout.state !== "draft")
      await announce(tx, { ...rollout, state: "aborted", revision: rollout.revision + 1n });
    return { rollout, changed: true };
  }
  const { position } = outcome;
  const targetKey = targetKeyOf(rollout.groupIds);
  let priorVersionId: string | undefined;
  if (rollout.state === "draft") {
    const version = await getModelVersion(tx, orgId, rollout.modelId, rollout.versionId);
    if (version.state !== "published") throw versionNotReady(version.version);
    priorVersionId = (await priorRollout(tx, orgId, rollout.modelId, targetKey))?.versionId ?? "";
  }
  if (rollout.state === "completed") {
    const deciding = await decidingCompleted(tx, orgId, rollout.modelId, targetKey);
    if (deciding !== id) {
      const message = "a later rollout of this model to this target has completed: roll that one back";
      throw fail(Reason.ILLEGAL_TRANSITION, message, { id, state: rollout.state, deciding: deciding ?? "" });
    }
    priorVersionId = (await priorRollout(tx, orgId, rollout.modelId, targetKey, id))?.versionId ?? "";
  }
  const isStarted = rollout.startTimeMs !== undefined;
  const moved = await moveRollout(
    tx,
    rollout,
    position,
    {
      ...(priorVersionId === undefined ? {} : { priorVersionId }),
      ended: endStates.has(position.state),
      started: !isStarted && (position.state === "running" || position.state === "awaiting_approval"),
    },
    stepOf(call, request),
  );
  call.audit?.note("from", rollout.state);
  call.audit?.note("to", moved.state);
  call.audit?.note("percentage_thousandths", String(moved.percentageThousandths));
  if (request.reason !== "") call.audit?.note("reason", request.reason);
  await announce(tx, moved);
  return { rollout: moved, changed: true };
}

/** Who takes a step in this call, and why. */
export function stepOf(call: Call, request: { reason: string; nowMs: number }): Step {
  return {
    id: newId("rtr", request.nowMs),
    actorKind: call.caller.kind,
    actorId: call.caller.id,
    reason: request.reason,
    time: new Date(request.nowMs),
  };
}

/** The refusal of a version that new rollouts may not use. */
export function versionNotReady(version: string) {
  return fail(Reason.VERSION_NOT_READY, `version ${version} was withdrawn from new rollouts`, { version });
}

const endStates: ReadonlySet<RolloutState> = new Set(["completed", "rolled_back", "aborted"]);

async function announce(tx: Tx, rollout: Rollout): Promise<void> {
  await appendOutbox(tx, {
    topic: definitionsTopic,
    orgId: rollout.orgId,
    key: `${rollout.id}/${rollout.revision}`,
    payload: toBinary(RolloutSchema, rolloutMessage(rollout)),
  });
}

function refusal(rollout: Rollout, action: Action, refused: { kind: string; message: string }) {
  const metadata = { id: rollout.id, state: rollout.state, action: action.kind };
  if (refused.kind === "percentage_not_monotone") {
    return fail(Reason.PERCENTAGE_NOT_MONOTONE, refused.message, {
      ...metadata,
      percentage_thousandths: String(rollout.percentageThousandths),
    });
  }
  return fail(Reason.ILLEGAL_TRANSITION, refused.message, metadata);
}

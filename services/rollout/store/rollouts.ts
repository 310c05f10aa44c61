import { constraintOf, sqlStateOf } from "@octomesh/mesh/database-error";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { Selectable } from "kysely";
import { sql } from "kysely";
import { type Plan, type Rollout, type RolloutState, targetKeyOf } from "../rollout.ts";
import { decidingStates, dueTimeOf, type Position } from "../rollout-state.ts";
import type { StoredPlan, Tables, Tx } from "./tables.ts";

/** A step in a rollout's life as it is stored. */
export type TransitionRow = Selectable<Tables["rollout_transitions"]>;

/** Who took a step, and why. */
export interface Step {
  /** `rtr_` id. */
  readonly id: string;
  readonly actorKind: string;
  readonly actorId: string;
  /** Up to 256 characters. */
  readonly reason: string;
  readonly time: Date;
}

/** A rollout that time alone may move on. */
export interface DueRollout {
  readonly orgId: string;
  readonly id: string;
  readonly state: RolloutState;
  readonly revision: bigint;
  readonly dueTimeMs: number;
}

/** What a new rollout is made of. */
export interface NewRollout {
  readonly orgId: string;
  readonly id: string;
  readonly modelId: string;
  readonly versionId: string;
  readonly groupIds: readonly string[];
  readonly plan: Plan;
  readonly salt: string;
  readonly priority: number;
  readonly priorVersionId: string;
}

/** Stores a draft and the step that made it: two rows, however many devices it is for. */
export async function insertRollout(tx: Tx, rollout: NewRollout, step: Step): Promise<Rollout> {
  const { orgId, id, plan } = rollout;
  await tx
    .insertInto("rollouts")
    .values({
      org_id: orgId,
      id,
      model_id: rollout.modelId,
      version_id: rollout.versionId,
      group_ids: [...rollout.groupIds].sort(),
      target_key: targetKeyOf(rollout.groupIds),
      plan: JSON.stringify(storedPlan(plan)),
      state: "draft",
      control_thousandths: plan.controlThousandths,
      salt: rollout.salt,
      priority: rollout.priority,
      prior_version_id: rollout.priorVersionId === "" ? null : rollout.priorVersionId,
      create_time: step.time,
      update_time: step.time,
    })
    .execute();
  await insertTransition(tx, orgId, id, { from: "", to: "draft", percentageThousandths: 0 }, step);
  return await getRollout(tx, orgId, id);
}

/** Finds a rollout. Refuses with RESOURCE_NOT_FOUND. */
export async function getRollout(tx: Tx, orgId: string, id: string): Promise<Rollout> {
  const rollout = await findRollout(tx, orgId, id);
  if (rollout === undefined) {
    throw fail(Reason.RESOURCE_NOT_FOUND, `there is no rollout ${id}`, { type: "rollout", id });
  }
  return rollout;
}

/** Finds a rollout; undefined if there is none. */
export async function findRollout(tx: Tx, orgId: string, id: string): Promise<Rollout | undefined> {
  const row = await selectRollouts(tx)
    .where("rollouts.org_id", "=", orgId)
    .where("rollouts.id", "=", id)
    .executeTakeFirst();
  return row === undefined ? undefined : rolloutOf(row);
}

/**
 * Puts this transaction in order with every other that changes what the organisation's rollouts decide: from here until
 * it ends, no other one reads or changes them by this way. Answers the new revision.
 */
export async function raiseRevision(tx: Tx, orgId: string): Promise<bigint> {
  const row = await tx
    .insertInto("rollout_revisions")
    .values({ org_id: orgId, revision: 1n })
    .onConflict((conflict) => conflict.column("org_id").doUpdateSet({ revision: sql`rollout_revisions.revision + 1` }))
    .returning("revision")
    .executeTakeFirstOrThrow();
  return row.revision;
}

/** The revision of an organisation's rollouts; 0 before the first. */
export async function readRevision(tx: Tx, orgId: string): Promise<bigint> {
  const row = await tx
    .selectFrom("rollout_revisions")
    .select("revision")
    .where("org_id", "=", orgId)
    .executeTakeFirst();
  return row?.revision ?? 0n;
}

/**
 * Moves a rollout to a new position and records the step. Refuses with ROLLOUT_CONFLICT where another rollout of this
 * model to this target is under way.
 */
export async function moveRollout(
  tx: Tx,
  rollout: Rollout,
  position: Position,
  more: { priorVersionId?: string; ended: boolean; started: boolean },
  step: Step,
): Promise<Rollout> {
  const { orgId, id } = rollout;
  const due = dueTimeOf(position, rollout.plan);
  try {
    await tx
      .updateTable("rollouts")
      .set({
        state: position.state,
        stage_index: position.stageIndex,
        percentage_thousandths: position.percentageThousandths,
        stage_time: position.stageTimeMs === undefined ? null : new Date(position.stageTimeMs),
        due_time: due === undefined ? null : new Date(due),
        update_time: step.time,
        revision: sql`revision + 1`,
        // A completed rollout that is rolled back has not ended until that is done.
        end_time: more.ended ? step.time : null,
        ...(more.started ? { start_time: step.time } : {}),
        ...(more.priorVersionId === undefined ? {} : { prior_version_id: more.priorVersionId || null }),
      })
      .where("org_id", "=", orgId)
      .where("id", "=", id)
      .execute();
  } catch (error) {
    if (sqlStateOf(error) === "23505" && constraintOf(error) === "rollouts_one_active") {
      throw fail(
        Reason.ROLLOUT_CONFLICT,
        "another rollout of this model to this target is under way: end it first",
        { id, model_id: rollout.modelId },
        { cause: error },
      );
    }
    throw error;
  }
  const change = {
    from: rollout.state,
    to: position.state,
    percentageThousandths: position.percentageThousandths,
  };
  await insertTransition(tx, orgId, id, change, step);
  return await getRollout(tx, orgId, id);
}

/** Deletes a rollout and its history. */
export async function deleteRollout(tx: Tx, orgId: string, id: string): Promise<void> {
  await tx.deleteFrom("rollouts").where("org_id", "=", orgId).where("id", "=", id).execute();
}

/** Rollouts, newest first, older than a position. */
export async function listRollouts(
  tx: Tx,
  orgId: string,
  filter: { modelId?: string | undefined; state?: RolloutState | undefined; before?: bigint | undefined },
  limit: number,
): Promise<Rollout[]> {
  let rollouts = selectRollouts(tx).where("rollouts.org_id", "=", orgId);
  if (filter.modelId !== undefined) rollouts = rollouts.where("rollouts.model_id", "=", filter.modelId);
  if (filter.state !== undefined) rollouts = rollouts.where("rollouts.state", "=", filter.state);
  if (filter.before !== undefined) rollouts = rollouts.where("rollouts.sequence", "<", filter.before);
  const rows = await rollouts.orderBy("rollouts.sequence", "desc").limit(limit).execute();
  return rows.map(rolloutOf);
}

/** The steps of a rollout's life, oldest first, after a position. */
export async function listTransitions(
  tx: Tx,
  orgId: string,
  rolloutId: string,
  after: bigint,
  limit: number,
): Promise<TransitionRow[]> {
  return await tx
    .selectFrom("rollout_transitions")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("rollout_id", "=", rolloutId)
    .where("sequence", ">", after)
    .orderBy("sequence")
    .limit(limit)
    .execute();
}

/**
 * The completed rollout whose version the devices of a target return to: the last one that completed for this very
 * target, else the last for all devices. `except` is left out.
 */
export async function priorRollout(
  tx: Tx,
  orgId: string,
  modelId: string,
  targetKey: string,
  except = "",
): Promise<Rollout | undefined> {
  const row = await selectRollouts(tx)
    .where("rollouts.org_id", "=", orgId)
    .where("rollouts.model_id", "=", modelId)
    .where("rollouts.target_key", "in", [targetKey, ""])
    .where("rollouts.state", "=", "completed")
    .where("rollouts.id", "!=", except)
    .orderBy(sql`rollouts.target_key = ${targetKey}`, "desc")
    .orderBy("rollouts.end_time", "desc")
    .orderBy("rollouts.sequence", "desc")
    .limit(1)
    .executeTakeFirst();
  return row === undefined ? undefined : rolloutOf(row);
}

/** The completed rollout that decides for a model and a target now. */
export async function decidingCompleted(
  tx: Tx,
  orgId: string,
  modelId: string,
  targetKey: string,
): Promise<string | undefined> {
  const row = await tx
    .selectFrom("rollouts")
    .select("id")
    .where("org_id", "=", orgId)
    .where("model_id", "=", modelId)
    .where("target_key", "=", targetKey)
    .where("state", "=", "completed")
    .orderBy("end_time", "desc")
    .orderBy("sequence", "desc")
    .limit(1)
    .executeTakeFirst();
  return row?.id;
}

/** Every rollout of an organisation that decides anything: those under way, and the last completed one per target. */
export async function listDeciding(tx: Tx, orgId: string): Promise<Rollout[]> {
  const rows = await decidingRollouts(tx).where("rollouts.org_id", "=", orgId).execute();
  return rows.map(rolloutOf);
}

/** The same over all organisations, in pages after (organisation, rollout) (role system). */
export async function listDecidingOfAll(
  tx: Tx,
  after: { orgId: string; id: string },
  limit: number,
): Promise<Rollout[]> {
  const rows = await decidingRollouts(tx)
    .where(({ eb, refTuple, tuple }) =>
      eb(refTuple("rollouts.org_id", "rollouts.id"), ">", tuple(after.orgId, after.id)),
    )
    .orderBy("rollouts.org_id")
    .orderBy("rollouts.id")
    .limit(limit)
    .execute();
  return rows.map(rolloutOf);
}

/** Rollouts that time alone may move on (role system). */
export async function listDue(tx: Tx, now: Date, limit: number): Promise<DueRollout[]> {
  const rows = await tx
    .selectFrom("rollouts")
    .select(["org_id", "id", "state", "revision", "due_time"])
    .where("due_time", "<=", now)
    .orderBy("due_time")
    .limit(limit)
    .execute();
  return rows.map((row) => ({
    orgId: row.org_id,
    id: row.id,
    state: row.state,
    revision: row.revision,
    dueTimeMs: row.due_time?.getTime() ?? 0,
  }));
}

function selectRollouts(tx: Tx) {
  return tx
    .selectFrom("rollouts")
    .innerJoin("model_versions as version", (join) =>
      join.onRef("version.org_id", "=", "rollouts.org_id").onRef("version.id", "=", "rollouts.version_id"),
    )
    .leftJoin("model_versions as prior", (join) =>
      join.onRef("prior.org_id", "=", "rollouts.org_id").onRef("prior.id", "=", "rollouts.prior_version_id"),
    )
    .selectAll("rollouts")
    .select(["version.version as version", "prior.version as prior_version"]);
}

function decidingRollouts(tx: Tx) {
  return selectRollouts(tx)
    .where("rollouts.state", "in", [...decidingStates])
    .where(({ or, not, exists, selectFrom, eb }) =>
      or([
        eb("rollouts.state", "!=", "completed"),
        not(
          exists(
            selectFrom("rollouts as later")
              .select("later.id")
              .whereRef("later.org_id", "=", "rollouts.org_id")
              .whereRef("later.model_id", "=", "rollouts.model_id")
              .whereRef("later.target_key", "=", "rollouts.target_key")
              .where("later.state", "=", "completed")
              .where(({ eb: compare, refTuple }) =>
                compare(
                  refTuple("later.end_time", "later.sequence"),
                  ">",
                  sql`(rollouts.end_time, rollouts.sequence)` as never,
                ),
              ),
          ),
        ),
      ]),
    );
}

type RolloutRow = Awaited<ReturnType<ReturnType<typeof selectRollouts>["executeTakeFirstOrThrow"]>>;

function rolloutOf(row: RolloutRow): Rollout {
  return {
    orgId: row.org_id,
    id: row.id,
    modelId: row.model_id,
    versionId: row.version_id,
    version: row.version,
    groupIds: row.group_ids,
    plan: planOf(row.plan),
    state: row.state,
    stageIndex: row.stage_index,
    percentageThousandths: row.percentage_thousandths,
    salt: row.salt,
    priority: row.priority,
    priorVersionId: row.prior_version_id ?? "",
    priorVersion: row.prior_version ?? "",
    createTimeMs: row.create_time.getTime(),
    updateTimeMs: row.update_time.getTime(),
    startTimeMs: row.start_time?.getTime(),
    stageTimeMs: row.stage_time?.getTime(),
    endTimeMs: row.end_time?.getTime(),
    revision: row.revision,
    sequence: row.sequence,
  };
}

function storedPlan(plan: Plan): StoredPlan {
  return {
    stages: plan.stages.map((stage) => ({
      percentage_thousandths: stage.percentageThousandths,
      min_dwell_ms: stage.minDwellMs,
      min_sample: stage.minSample,
      approval_required: stage.approvalRequired,
    })),
    control_thousandths: plan.controlThousandths,
    ...(plan.scheduleTimeMs === undefined ? {} : { schedule_time_ms: plan.scheduleTimeMs }),
  };
}

function planOf(stored: StoredPlan): Plan {
  return {
    stages: stored.stages.map((stage) => ({
      percentageThousandths: stage.percentage_thousandths,
      minDwellMs: stage.min_dwell_ms,
      minSample: stage.min_sample,
      approvalRequired: stage.approval_required,
    })),
    controlThousandths: stored.control_thousandths,
    ...(stored.schedule_time_ms === undefined ? {} : { scheduleTimeMs: stored.schedule_time_ms }),
  };
}

async function insertTransition(
  tx: Tx,
  orgId: string,
  rolloutId: string,
  change: { from: RolloutState | ""; to: RolloutState; percentageThousandths: number },
  step: Step,
): Promise<void> {
  await tx
    .insertInto("rollout_transitions")
    .values({
      org_id: orgId,
      id: step.id,
      rollout_id: rolloutId,
      from_state: change.from,
      to_state: change.to,
      percentage_thousandths: change.percentageThousandths,
      actor_kind: step.actorKind,
      actor_id: step.actorId,
      reason: step.reason,
      create_time: step.time,
    })
    .execute();
}

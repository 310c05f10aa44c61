import { bucketOf, isControl, isExposed, sliceOf } from "@octomesh/mesh/bucket";
import { type Rollout, Rollout_State as State } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { AggregateKey_Cohort as Cohort } from "@octomesh/proto/octomesh/telemetry/v1/health_report_pb";

export { Cohort };

/** What of a rollout decides about cohorts. */
export interface RolloutDefinition {
  readonly id: string;
  readonly orgId: string;
  readonly modelId: string;
  readonly versionId: string;
  readonly priorVersionId: string;
  readonly salt: string;
  readonly state: State;
  /** Thousandths of a percent. */
  readonly percentage: number;
  /** Thousandths of a percent. */
  readonly control: number;
  readonly priority: number;
  /** Only devices of some groups are concerned. */
  readonly grouped: boolean;
  /** Milliseconds since the epoch. */
  readonly createMs: number;
}

/** The part of the fleet that a report belongs to. */
export interface Placement {
  readonly rolloutId: string;
  readonly cohort: Cohort;
  /** 0 to 31. */
  readonly slice: number;
}

/** What of a report decides its cohort. Ids are "" where the report names none. */
export interface Subject {
  readonly deviceId: string;
  readonly modelId: string;
  readonly versionId: string;
  readonly rolloutId: string;
}

/** The definition in a rollout, as its service streams it. */
export function definitionOf(rollout: Rollout): RolloutDefinition {
  return {
    id: rollout.id,
    orgId: rollout.orgId,
    modelId: rollout.modelId,
    versionId: rollout.versionId,
    priorVersionId: rollout.priorVersionId,
    salt: rollout.salt,
    state: rollout.state,
    percentage: rollout.percentageThousandths,
    control: rollout.plan?.controlThousandths ?? 0,
    priority: rollout.priority,
    grouped: (rollout.target?.groupIds.length ?? 0) > 0,
    createMs: rollout.createTime === undefined ? 0 : Number(rollout.createTime.seconds) * 1000,
  };
}

/**
 * Where a report belongs, given the definitions of its organisation and model.
 *
 * A report that names its rollout belongs to that one. Any other belongs to the first rollout, in the order in which
 * overlaps resolve (priority, groups before all, older first), that concerns its device: one under way, or else a
 * completed one that delivered the version. The cohort follows the device's bucket and not what it happens to run
 * (intention to treat); the version is a key of its own.
 *
 * Which groups a device is in is not known here, so a rollout to groups concerns a device only where the report
 * names it or its version. A report that no rollout concerns is in cohort NONE, sliced by a salt of its own.
 */
export function placeReport(subject: Subject, definitions: Iterable<RolloutDefinition>): Placement {
  const candidates = [...definitions].filter(({ modelId }) => modelId === subject.modelId);
  const named = candidates.find(({ id }) => id === subject.rolloutId);
  if (named !== undefined) return placeIn(named, subject.deviceId);
  if (subject.rolloutId !== "") return { rolloutId: subject.rolloutId, cohort: Cohort.NONE, slice: ownSlice(subject) };
  const ordered = candidates.sort(byPrecedence);
  const concerned =
    ordered.find((definition) => isUnderWay(definition) && isFor(definition, subject)) ??
    ordered.find(({ state, versionId }) => state === State.COMPLETED && versionId === subject.versionId);
  if (concerned === undefined) return { rolloutId: "", cohort: Cohort.NONE, slice: ownSlice(subject) };
  return placeIn(concerned, subject.deviceId);
}

function placeIn(definition: RolloutDefinition, deviceId: string): Placement {
  const { id: rolloutId, salt, state, percentage, control } = definition;
  const bucket = bucketOf(salt, deviceId);
  const slice = sliceOf(salt, deviceId);
  if (state === State.COMPLETED || isExposed(bucket, percentage, control)) {
    return { rolloutId, cohort: Cohort.EXPOSED, slice };
  }
  return { rolloutId, cohort: isControl(bucket, control) ? Cohort.CONTROL : Cohort.WAITING, slice };
}

function ownSlice({ deviceId }: Subject): number {
  return sliceOf("octomesh-telemetry", deviceId);
}

function isUnderWay({ state }: RolloutDefinition): boolean {
  return (
    state === State.RUNNING ||
    state === State.PAUSED ||
    state === State.ROLLING_BACK ||
    state === State.AWAITING_APPROVAL
  );
}

function isFor(definition: RolloutDefinition, subject: Subject): boolean {
  return !definition.grouped || definition.versionId === subject.versionId;
}

function byPrecedence(a: RolloutDefinition, b: RolloutDefinition): number {
  return (
    b.priority - a.priority ||
    Number(b.grouped) - Number(a.grouped) ||
    a.createMs - b.createMs ||
    (a.id < b.id ? -1 : a.id > b.id ? 1 : 0)
  );
}

import { bucketOf, isExposed } from "@octomesh/mesh/bucket";
import { type RolloutState, targetKeyOf } from "./rollout.ts";

/** What of a rollout decides which devices run its version. Times are milliseconds since the Unix epoch. */
export interface Definition {
  readonly rolloutId: string;
  readonly modelId: string;
  readonly versionId: string;
  /** Empty means all devices of the organisation. */
  readonly groupIds: readonly string[];
  readonly state: RolloutState;
  readonly percentageThousandths: number;
  readonly controlThousandths: number;
  readonly priority: number;
  readonly salt: string;
  readonly startTimeMs: number;
  readonly endTimeMs: number;
}

/** What is known of a device. */
export interface DeviceFacts {
  readonly deviceId: string;
  readonly groupIds: readonly string[];
}

/** An organisation's definitions, arranged for resolving many devices. */
export interface DefinitionIndex {
  /** Model id to the targets that its rollouts have. */
  readonly models: ReadonlyMap<string, readonly TargetDefinitions[]>;
  /** The definitions that may decide, by rollout. */
  readonly byRollout: ReadonlyMap<string, Definition>;
}

interface TargetDefinitions {
  readonly groupIds: ReadonlySet<string>;
  readonly active: Definition | undefined;
  readonly completed: Definition | undefined;
}

/**
 * Arranges definitions: for each model and target the one rollout under way and the last one that completed. Older
 * completed ones, and rollouts that are not under way, decide nothing.
 */
export function indexDefinitions(definitions: Iterable<Definition>): DefinitionIndex {
  const models = new Map<string, Map<string, TargetDefinitions>>();
  for (const definition of definitions) {
    const isActive = isUnderWay(definition.state);
    if (!isActive && definition.state !== "completed") continue;
    const targets = models.get(definition.modelId) ?? new Map<string, TargetDefinitions>();
    models.set(definition.modelId, targets);
    const key = targetKeyOf(definition.groupIds);
    const known = targets.get(key);
    targets.set(key, {
      groupIds: new Set(definition.groupIds),
      active: isActive ? newer(definition, known?.active, startOrder) : known?.active,
      completed: isActive ? known?.completed : newer(definition, known?.completed, endOrder),
    });
  }
  const byRollout = new Map<string, Definition>();
  for (const targets of models.values()) {
    for (const { active, completed } of targets.values()) {
      if (active !== undefined) byRollout.set(active.rolloutId, active);
      if (completed !== undefined) byRollout.set(completed.rolloutId, completed);
    }
  }
  return { models: new Map([...models].map(([id, targets]) => [id, [...targets.values()]])), byRollout };
}

/**
 * Resolves what one device is to run: for each model the rollout that decides, in order of model id. A model without a
 * deciding rollout is absent.
 *
 * For one target, the rollout under way decides for the devices it exposes and the last completed one for all others.
 * Where targets overlap, the higher priority decides, then groups before all devices, then the rollout started last
 * (DESIGN 8.11).
 */
export function resolveDevice(index: DefinitionIndex, facts: DeviceFacts): Definition[] {
  const decided: Definition[] = [];
  for (const targets of index.models.values()) {
    let best: Definition | undefined;
    for (const target of targets) {
      if (!isTargeted(target.groupIds, facts.groupIds)) continue;
      const { active, completed } = target;
      const candidate = active !== undefined && exposes(active, facts.deviceId) ? active : completed;
      if (candidate !== undefined && (best === undefined || outranks(candidate, best))) best = candidate;
    }
    if (best !== undefined) decided.push(best);
  }
  return decided.sort((a, b) => (a.modelId < b.modelId ? -1 : 1));
}

/** Whether a rollout exposes a device of its target: by bucket while it is under way, every device once completed. */
export function exposes(definition: Definition, deviceId: string): boolean {
  if (definition.state === "completed") return true;
  if (!isUnderWay(definition.state) || definition.percentageThousandths === 0) return false;
  return isExposed(
    bucketOf(definition.salt, deviceId),
    definition.percentageThousandths,
    definition.controlThousandths,
  );
}

/**
 * Whether a rollout still delivers this version to this device, as far as can be told without the device's groups: for
 * a download grant that was made a while ago.
 */
export function stillDelivers(index: DefinitionIndex, rolloutId: string, versionId: string, deviceId: string): boolean {
  const definition = index.byRollout.get(rolloutId);
  return definition !== undefined && definition.versionId === versionId && exposes(definition, deviceId);
}

function isUnderWay(state: RolloutState): boolean {
  return state === "running" || state === "paused" || state === "awaiting_approval";
}

function isTargeted(target: ReadonlySet<string>, groupIds: readonly string[]): boolean {
  return target.size === 0 || groupIds.some((id) => target.has(id));
}

function outranks(a: Definition, b: Definition): boolean {
  if (a.priority !== b.priority) return a.priority > b.priority;
  const aIsForAll = a.groupIds.length === 0;
  if (aIsForAll !== (b.groupIds.length === 0)) return !aIsForAll;
  return startOrder(a, b) > 0;
}

function newer(a: Definition, b: Definition | undefined, order: (a: Definition, b: Definition) => number): Definition {
  return b === undefined || order(a, b) > 0 ? a : b;
}

/** Ids break ties, so that every replica decides alike. */
function startOrder(a: Definition, b: Definition): number {
  return a.startTimeMs - b.startTimeMs || (a.rolloutId > b.rolloutId ? 1 : -1);
}

function endOrder(a: Definition, b: Definition): number {
  return a.endTimeMs - b.endTimeMs || startOrder(a, b);
}

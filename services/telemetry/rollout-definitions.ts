import type { WatchRolloutDefinitionsResponse } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { Rollout_State as State } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { definitionOf, type RolloutDefinition } from "./cohort.ts";

/** The rollouts of all organisations, as far as this process has heard. */
export interface RolloutDefinitions {
  /** True once everything that stood at the beginning has been heard. */
  readonly caughtUp: boolean;
  /** Where to resume; "" at the beginning. */
  readonly cursor: string;
  /** Takes one message of the stream. Messages may repeat. */
  apply(message: WatchRolloutDefinitionsResponse): void;
  /** Forgets the cursor, and everything that is not heard again until the stream has caught up. */
  restart(): void;
  /** The rollouts of one organisation's model. */
  of(orgId: string, modelId: string): readonly RolloutDefinition[];
  /** The organisation that a model, version or rollout belongs to; undefined where no definition names it. */
  ownerOf(id: string): string | undefined;
}

/** Holds definitions in memory: one entry for each rollout, model and version that is in one. */
export function createRolloutDefinitions(): RolloutDefinitions {
  let current = emptyState();
  /** What a restarted stream has sent so far; becomes current when it has caught up. */
  let next: Held | undefined = current;
  let cursor = "";
  let caughtUp = false;

  return {
    get caughtUp() {
      return caughtUp;
    },
    get cursor() {
      return cursor;
    },
    apply(message) {
      const target = next ?? current;
      for (const rollout of message.rollouts) {
        if (rollout.state === State.ABORTED) remove(target, rollout.id);
        else put(target, definitionOf(rollout));
      }
      if (message.cursor !== "") cursor = message.cursor;
      if (message.caughtUp && next !== undefined) {
        current = next;
        next = undefined;
        caughtUp = true;
      }
    },
    restart() {
      cursor = "";
      next = emptyState();
    },
    of: (orgId, modelId) => [...(current.byModel.get(`${orgId}/${modelId}`)?.values() ?? [])],
    ownerOf: (id) => current.owners.get(id),
  };
}

interface Held {
  readonly byId: Map<string, RolloutDefinition>;
  readonly byModel: Map<string, Map<string, RolloutDefinition>>;
  readonly owners: Map<string, string>;
}

function emptyState(): Held {
  return { byId: new Map(), byModel: new Map(), owners: new Map() };
}

function put(state: Held, definition: RolloutDefinition): void {
  const { id, orgId, modelId } = definition;
  state.byId.set(id, definition);
  const key = `${orgId}/${modelId}`;
  const siblings = state.byModel.get(key);
  if (siblings === undefined) state.byModel.set(key, new Map([[id, definition]]));
  else siblings.set(id, definition);
  for (const owned of [id, modelId, definition.versionId, definition.priorVersionId]) {
    if (owned !== "") state.owners.set(owned, orgId);
  }
}

/** Models and versions keep their owner: they exist without the rollout. */
function remove(state: Held, id: string): void {
  const definition = state.byId.get(id);
  if (definition === undefined) return;
  state.byId.delete(id);
  const key = `${definition.orgId}/${definition.modelId}`;
  const siblings = state.byModel.get(key);
  siblings?.delete(id);
  if (siblings?.size === 0) state.byModel.delete(key);
}

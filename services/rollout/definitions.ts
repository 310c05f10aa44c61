import type { Database } from "@octomesh/mesh/database";
import type { Outbox } from "@octomesh/mesh/outbox";
import { type Definition, type DefinitionIndex, indexDefinitions } from "./resolve.ts";
import type { Rollout } from "./rollout.ts";
import { versionsById } from "./store/model-versions.ts";
import { listDeciding, readRevision } from "./store/rollouts.ts";
import type { Tables } from "./store/tables.ts";

/** Topic of the outbox on which rollouts are announced whenever what they decide changes. */
export const definitionsTopic = "rollout.definitions";

/** What a device is told of a version. */
export interface DeliverableVersion {
  readonly modelId: string;
  readonly modelName: string;
  readonly version: string;
  readonly versionId: string;
  readonly artifactId: string;
  readonly manifest: Buffer;
  readonly signature: Buffer;
  readonly keyId: string;
}

/** What an organisation's rollouts decide, at one moment. */
export interface OrganizationDefinitions {
  readonly revision: bigint;
  /** Nothing before this position of the outbox is missing. */
  readonly cursor: string;
  readonly index: DefinitionIndex;
  readonly versions: ReadonlyMap<string, DeliverableVersion>;
}

/** The definitions of all organisations, kept in memory while they stand. */
export interface Definitions {
  /** An organisation's definitions, never older than this call: whoever was told of a change sees it here. */
  current(orgId: string): Promise<OrganizationDefinitions>;
  /** Drops what is kept of an organisation. */
  forget(orgId: string): void;
}

/**
 * Keeps the definitions of the organisations that were asked for last, at most `maxOrganizations`. Each use reads the
 * organisation's revision, one row by its key, and reloads when it has moved; concurrent loads of one organisation are
 * one.
 */
export function createDefinitions(
  database: Database<Tables>,
  outbox: Pick<Outbox, "head">,
  maxOrganizations = 1000,
): Definitions {
  const kept = new Map<string, OrganizationDefinitions>();
  const loading = new Map<string, Promise<OrganizationDefinitions>>();

  async function load(orgId: string): Promise<OrganizationDefinitions> {
    // The position first: what changes between it and the reading is read now and announced once more.
    const cursor = await outbox.head(definitionsTopic);
    const loaded = await database.read(
      orgId,
      async (tx) => {
        const revision = await readRevision(tx, orgId);
        const rollouts = await listDeciding(tx, orgId);
        const rows = await versionsById(tx, orgId, [...new Set(rollouts.map((rollout) => rollout.versionId))]);
        const versions = new Map<string, DeliverableVersion>();
        for (const row of rows) {
          versions.set(row.id, {
            modelId: row.model_id,
            modelName: row.model_name,
            version: row.version,
            versionId: row.id,
            artifactId: row.artifact_id,
            manifest: row.manifest,
            signature: row.signature,
            keyId: row.key_id,
          });
        }
        return { revision, cursor, index: indexDefinitions(rollouts.map(definitionOf)), versions };
      },
      { isolation: "repeatable read" },
    );
    kept.delete(orgId);
    kept.set(orgId, loaded);
    const oldest = kept.keys().next();
    if (kept.size > maxOrganizations && oldest.done !== true) kept.delete(oldest.value);
    return loaded;
  }

  function loadOnce(orgId: string): Promise<OrganizationDefinitions> {
    let promise = loading.get(orgId);
    if (promise === undefined) {
      promise = load(orgId).finally(() => loading.delete(orgId));
      loading.set(orgId, promise);
    }
    return promise;
  }

  return {
    async current(orgId) {
      const revision = await database.read(orgId, (tx) => readRevision(tx, orgId));
      let found = kept.get(orgId);
      // An erased organisation begins again at 0.
      if (found !== undefined && found.revision > revision) found = undefined;
      // A load that was under way may have begun before the revision was read.
      while (found === undefined || found.revision < revision) found = await loadOnce(orgId);
      return found;
    },
    forget(orgId) {
      kept.delete(orgId);
    },
  };
}

/** What of a rollout decides. */
export function definitionOf(rollout: Rollout): Definition {
  return {
    rolloutId: rollout.id,
    modelId: rollout.modelId,
    versionId: rollout.versionId,
    groupIds: rollout.groupIds,
    state: rollout.state,
    percentageThousandths: rollout.percentageThousandths,
    controlThousandths: rollout.plan.controlThousandths,
    priority: rollout.priority,
    salt: rollout.salt,
    startTimeMs: rollout.startTimeMs ?? rollout.createTimeMs,
    endTimeMs: rollout.endTimeMs ?? 0,
  };
}

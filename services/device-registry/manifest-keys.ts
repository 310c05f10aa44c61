import type { Client } from "@connectrpc/connect";
import type { Clock } from "@octomesh/mesh/clock";
import type { ManifestKey } from "@octomesh/proto/octomesh/model/v1/manifest_pb";
import type { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { LRUCache } from "lru-cache";

/** The keys by which devices verify manifests, kept per organisation. */
export interface ManifestKeys {
  /** The keys of an organisation. Keys that were known are good enough where rollout cannot be asked. */
  get(orgId: string): Promise<readonly ManifestKey[]>;
  /** Forgets an organisation. */
  forget(orgId: string): void;
}

/** After how many milliseconds keys are asked for again. */
export const manifestKeysTtlMs = 300_000;

const maxOrgs = 10_000;

/** Opens the cache. Simultaneous questions about one organisation become one call. */
export function openManifestKeys(
  client: Pick<Client<typeof ModelVersionService>, "listManifestKeys">,
  clock: Clock,
): ManifestKeys {
  const known = new LRUCache<string, { keys: readonly ManifestKey[]; timeMs: number }>({ max: maxOrgs });
  const asking = new Map<string, Promise<readonly ManifestKey[]>>();

  const ask = async (orgId: string): Promise<readonly ManifestKey[]> => {
    const { keys } = await client.listManifestKeys({ orgId }, { timeoutMs: 5000 });
    known.set(orgId, { keys, timeMs: clock.now() });
    return keys;
  };

  return {
    async get(orgId) {
      const cached = known.get(orgId);
      if (cached !== undefined && clock.now() - cached.timeMs < manifestKeysTtlMs) return cached.keys;
      let work = asking.get(orgId);
      if (work === undefined) {
        work = ask(orgId).finally(() => asking.delete(orgId));
        asking.set(orgId, work);
      }
      try {
        return await work;
      } catch (error) {
        if (cached !== undefined) return cached.keys;
        throw error;
      }
    },
    forget(orgId) {
      known.delete(orgId);
    },
  };
}

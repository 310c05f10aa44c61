import { LRUCache } from "lru-cache";
import type { DeviceChange } from "./device-change.ts";
import type { StoredState } from "./registration.ts";

/** What a rollout may ask of a device, and whether it may act at all. */
export interface DeviceFacts {
  readonly state: StoredState;
  readonly groupIds: readonly string[];
}

/** Facts of devices, kept in memory until they change. */
export interface DeviceFactsCache {
  /** The facts of devices of one organisation, 1000 at most; absent for those that it does not have. */
  get(orgId: string, deviceIds: readonly string[]): Promise<Map<string, DeviceFacts>>;
  /** Forgets what a change concerns, and what is being read while it arrives. */
  forget(orgId: string, change: DeviceChange): void;
  /** Forgets everything. */
  clear(): void;
}

/** How the cache is filled and bounded. */
export interface DeviceFactsOptions {
  load(orgId: string, deviceIds: readonly string[]): Promise<Map<string, DeviceFacts>>;
  /** Devices kept at most. Default 200,000. */
  maxDevices?: number;
  /** After how many milliseconds facts are read again, the backstop of pushed changes. Default 30,000. */
  ttlMs?: number;
}

/** Opens the cache. */
export function openDeviceFacts(options: DeviceFactsOptions): DeviceFactsCache {
  const { load, maxDevices = 200_000, ttlMs = 30_000 } = options;
  const known = new LRUCache<string, DeviceFacts>({ max: maxDevices, ttl: ttlMs });
  let epoch = 0;

  return {
    async get(orgId, deviceIds) {
      const facts = new Map<string, DeviceFacts>();
      const missing: string[] = [];
      for (const deviceId of deviceIds) {
        const cached = known.get(keyOf(orgId, deviceId));
        if (cached === undefined) missing.push(deviceId);
        else facts.set(deviceId, cached);
      }
      if (missing.length === 0) return facts;
      const begun = epoch;
      for (const [deviceId, loaded] of await load(orgId, missing)) {
        facts.set(deviceId, loaded);
        // What changed while it was read may have been read as it was before.
        if (begun === epoch) known.set(keyOf(orgId, deviceId), loaded);
      }
      return facts;
    },
    forget(orgId, change) {
      epoch += 1;
      if (change.everyDevice) {
        for (const key of [...known.keys()]) if (key.startsWith(`${orgId} `)) known.delete(key);
      } else {
        for (const deviceId of change.deviceIds) known.delete(keyOf(orgId, deviceId));
      }
    },
    clear() {
      epoch += 1;
      known.clear();
    },
  };
}

function keyOf(orgId: string, deviceId: string): string {
  return `${orgId} ${deviceId}`;
}

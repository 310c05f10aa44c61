import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import type { Clock } from "@octomesh/mesh/clock";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { DesiredState } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import type { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { LRUCache } from "lru-cache";
import type { Logger } from "pino";
import { batchByOrg } from "./batch-by-org.ts";
import type { DeviceChange } from "./device-change.ts";
import type { DeviceFactsCache } from "./device-facts.ts";

/** What a device is to run, or that it is to run nothing because it may not act. */
export type Resolution =
  | { readonly active: true; readonly state: DesiredState }
  | { readonly active: false; readonly exists: boolean };

/** What devices are to run: resolved by rollout in batches, remembered by etag, pushed as it changes. */
export interface DesiredStates {
  /** The desired state as it is now, with fresh download grants. */
  get(orgId: string, deviceId: string): Promise<Resolution>;
  /**
   * The etag of the desired state: from memory where nothing changed since it was resolved. Answers what it last knew,
   * or "", where rollout cannot be asked within two seconds.
   */
  etag(orgId: string, deviceId: string): Promise<string>;
  /**
   * The desired state now, if its etag is not the one held, and again whenever it changes, each with fresh grants; of
   * several changes at once only the last. Throws DEVICE_NOT_ACTIVE when the device may not act any more. Returns when
   * `signal` aborts, when a newer watch of the device takes its place, or when the service stops. Watches by others than
   * the device itself (`bystander`) take the places of one another only.
   */
  watch(
    orgId: string,
    deviceId: string,
    heldEtag: string,
    signal: AbortSignal,
    watcher?: Watcher,
  ): AsyncGenerator<DesiredState>;
  /** Assignments of these organisations changed: forgets etags and resolves anew for those who watch. */
  definitionsChanged(orgIds: readonly string[]): void;
  /** Devices changed: the same for them. */
  devicesChanged(orgId: string, change: DeviceChange): void;
  /** Something may have been missed: the same for all. */
  everythingChanged(): void;
  /** How many watches are open. */
  watchers(): number;
  /** Ends every watch. */
  stop(): void;
}

/** What the desired states are made from. */
export interface DesiredStatesOptions {
  readonly client: Pick<Client<typeof AssignmentService>, "resolveDesiredStates">;
  readonly facts: DeviceFactsCache;
  readonly clock: Clock;
  readonly log: Logger;
  /** How long a device without a stream waits before it asks again, in milliseconds. */
  readonly pollIntervalMs: number;
  /** Whether changes of definitions arrive now. While they do not, what is remembered counts for less long. */
  isFollowing(): boolean;
  /** Watches open at most, in all. Default 50,000. */
  readonly maxWatches?: number;
  /** Etags remembered at most. Default 500,000. */
  readonly maxEtags?: number;
}

/** Who watches: the device itself, or somebody who may read it. */
export type Watcher = "device" | "bystander";

/**
 * Watches of one device at most, its own and those of bystanders each: the oldest, whose client is presumably gone, gives
 * way.
 */
export const maxWatchesOfDevice = 4;

const resolveTimeoutMs = 10_000;
const etagPatienceMs = 2_000;
const trustMs = 300_000;
const trustUnfollowedMs = 30_000;
const devicesAtOnce = 1000;
const batchesAtOnce = 4;
const gatherMs = 5;
const reconcileMs = 60_000;
const maxChangedOrgs = 50_000;
const firstRetryMs = 200;
const lastRetryMs = 5_000;

interface Watch {
  readonly orgId: string;
  readonly deviceId: string;
  readonly watcher: Watcher;
  waiting: Resolution | undefined;
  /** The moment of the newest resolution that arrived: one that was begun before it does not count any more. */
  moment: number;
  ended: boolean;
  wake: () => void;
}

interface FactsOfDevice {
  deviceId: string;
  groupIds: string[];
}

interface KnownEtag {
  readonly etag: string;
  /** The moment, counted in changes, from which the answer is. */
  readonly moment: number;
  readonly timeMs: number;
}

/** Opens the desired states of this process. */
export function openDesiredStates(options: DesiredStatesOptions): DesiredStates {
  const { client, facts, clock, log } = options;
  const { maxWatches = 50_000, maxEtags = 500_000 } = options;
  const pollInterval = durationFromMs(options.pollIntervalMs);
  const etags = new LRUCache<string, KnownEtag>({ max: maxEtags });
  const watches = new Map<string, Map<string, Watch[]>>();
  const dirty = new Map<string, Set<string>>();
  let openWatches = 0;
  let stopped = false;

  // Changes are counted; what was resolved before the last change that concerns it does not count any more.
  let moment = 0;
  let allChanged = 0;
  const orgChanged = new Map<string, number>();
  const factsChanged = new Map<string, number>();
  const noteChange = (changes: Map<string, number>, orgId: string): void => {
    moment += 1;
    if (changes.size >= maxChangedOrgs) {
      changes.clear();
      allChanged = moment;
    }
    changes.set(orgId, moment);
  };

  const resolve = async (orgId: string, deviceIds: readonly string[]): Promise<Map<string, Resolution>> => {
    const begun = moment;
    const known = await facts.get(orgId, deviceIds);
    const active = deviceIds.filter((deviceId) => known.get(deviceId)?.state === "active");
    const resolutions = new Map<string, Resolution>();
    for (const deviceId of deviceIds) resolutions.set(deviceId, { active: false, exists: known.has(deviceId) });
    if (active.length === 0) return resolutions;
    const devices = active.map((deviceId) => ({ deviceId, groupIds: [...(known.get(deviceId)?.groupIds ?? [])] }));
    const byId = new Map((await ask(orgId, devices)).map((state) => [state.deviceId, state]));
    const timeMs = clock.now();
    for (const deviceId of active) {
      const state = byId.get(deviceId);
      if (state === undefined) throw new Error("rollout answered without one of the devices");
      state.pollInterval = pollInterval;
      resolutions.set(deviceId, { active: true, state });
      const isNewest = (etags.peek(keyOf(orgId, deviceId))?.moment ?? 0) <= begun;
      if (isNewest && begun >= (factsChanged.get(orgId) ?? 0)) {
        etags.set(keyOf(orgId, deviceId), { etag: state.etag, moment: begun, timeMs });
      }
    }
    return resolutions;
  };

  // An answer may be too large for one message where models are many: then the halves are asked for.
  const ask = async (orgId: string, devices: FactsOfDevice[]): Promise<DesiredState[]> => {
    try {
      return (await client.resolveDesiredStates({ orgId, devices }, { timeoutMs: resolveTimeoutMs })).desiredStates;
    } catch (error) {
      if (devices.length === 1 || ConnectError.from(error).code !== Code.ResourceExhausted) throw error;
      const half = Math.ceil(devices.length / 2);
      return [...(await ask(orgId, devices.slice(0, half))), ...(await ask(orgId, devices.slice(half)))];
    }
  };

  const batches = batchByOrg<Resolution>({ run: resolve, maxItems: devicesAtOnce });

  const isCurrent = (orgId: string, known: KnownEtag): boolean => {
    const age = clock.now() - known.timeMs;
    return (
      known.moment >= Math.max(allChanged, orgChanged.get(orgId) ?? 0) &&
      age < (options.isFollowing() ? trustMs : trustUnfollowedMs)
    );
  };

  const deliver = (orgId: string, deviceId: string, resolution: Resolution, begun: number): void => {
    for (const watch of watches.get(orgId)?.get(deviceId) ?? []) {
      if (begun < watch.moment) continue;
      watch.moment = begun;
      watch.waiting = resolution;
      watch.wake();
    }
  };

  let running = 0;
  let retryMs = firstRetryMs;
  let retryTimer: NodeJS.Timeout | undefined;
  let gathering: NodeJS.Timeout | undefined;

  const pump = (): void => {
    if (stopped || retryTimer !== undefined) return;
    while (running < batchesAtOnce) {
      const batch = takeBatch(dirty);
      if (batch === undefined) return;
      const [orgId, marked] = batch;
      const deviceIds = marked.filter((deviceId) => watches.get(orgId)?.has(deviceId));
      if (deviceIds.length === 0) continue;
      running += 1;
      const begun = moment;
      resolve(orgId, deviceIds)
        .then((resolutions) => {
          retryMs = firstRetryMs;
          for (const [deviceId, resolution] of resolutions) deliver(orgId, deviceId, resolution, begun);
        })
        .catch((error: unknown) => {
          log.warn({ err: error, devices: deviceIds.length, retry_ms: retryMs }, "desired states not resolved");
          markDirty(orgId, deviceIds);
          retryTimer ??= setTimeout(
            () => {
              retryTimer = undefined;
              pump();
            },
            retryMs * (0.5 + Math.random()),
          );
          retryMs = Math.min(lastRetryMs, retryMs * 2);
        })
        .finally(() => {
          running -= 1;
          pump();
        });
    }
  };

  // Changes that come together are resolved together.
  const schedulePump = (): void => {
    gathering ??= setTimeout(() => {
      gathering = undefined;
      pump();
    }, gatherMs);
  };

  const markDirty = (orgId: string, deviceIds: Iterable<string>): void => {
    const watched = watches.get(orgId);
    if (watched === undefined) return;
    const marked = dirty.get(orgId) ?? new Set<string>();
    for (const deviceId of deviceIds) if (watched.has(deviceId)) marked.add(deviceId);
    if (marked.size > 0) dirty.set(orgId, marked);
  };

  const markOrgDirty = (orgId: string): void => markDirty(orgId, watches.get(orgId)?.keys() ?? []);

  // What is pushed can be lost between here and rollout; what is asked for once a minute cannot.
  const reconcileTimer = setInterval(() => {
    for (const orgId of watches.keys()) markOrgDirty(orgId);
    schedulePump();
  }, reconcileMs);
  reconcileTimer.unref();

  const open = (orgId: string, deviceId: string, watcher: Watcher): Watch => {
    if (openWatches >= maxWatches) {
      throw fail(Reason.OVERLOADED, "too many devices watch at once", {}, { retryAfterMs: 5000 });
    }
    const watch: Watch = { orgId, deviceId, watcher, waiting: undefined, moment: 0, ended: stopped, wake: () => {} };
    const ofOrg = watches.get(orgId) ?? new Map<string, Watch[]>();
    const ofDevice = [...(ofOrg.get(deviceId) ?? []), watch];
    for (const oldest of ofDevice.filter((each) => each.watcher === watcher).slice(0, -maxWatchesOfDevice)) {
      oldest.ended = true;
      oldest.wake();
    }
    ofOrg.set(deviceId, ofDevice);
    watches.set(orgId, ofOrg);
    openWatches += 1;
    return watch;
  };

  const close = (watch: Watch): void => {
    const ofOrg = watches.get(watch.orgId);
    const left = (ofOrg?.get(watch.deviceId) ?? []).filter((other) => other !== watch);
    if (left.length > 0) ofOrg?.set(watch.deviceId, left);
    else ofOrg?.delete(watch.deviceId);
    if (ofOrg?.size === 0) watches.delete(watch.orgId);
    openWatches -= 1;
  };

  return {
    async get(orgId, deviceId) {
      return await batches.ask(orgId, deviceId);
    },

    async etag(orgId, deviceId) {
      const known = etags.get(keyOf(orgId, deviceId));
      if (known !== undefined && isCurrent(orgId, known)) return known.etag;
      const resolution = await within(etagPatienceMs, batches.ask(orgId, deviceId));
      if (resolution === undefined) return known?.etag ?? "";
      return resolution.active ? resolution.state.etag : "";
    },

    async *watch(orgId, deviceId, heldEtag, signal, watcher = "device") {
      const watch = open(orgId, deviceId, watcher);
      const onAbort = (): void => {
        watch.ended = true;
        watch.wake();
      };
      signal.addEventListener("abort", onAbort, { once: true });
      if (signal.aborted) watch.ended = true;
      try {
        let held = heldEtag;
        markDirty(orgId, [deviceId]);
        schedulePump();
        for (;;) {
          if (watch.waiting === undefined && !watch.ended) {
            await new Promise<void>((wake) => {
              watch.wake = wake;
            });
          }
          if (watch.ended) return;
          const resolution = watch.waiting;
          watch.waiting = undefined;
          if (resolution === undefined) continue;
          if (!resolution.active) throw deviceNotActive(deviceId);
          if (resolution.state.etag === held) continue;
          held = resolution.state.etag;
          yield resolution.state;
        }
      } finally {
        signal.removeEventListener("abort", onAbort);
        close(watch);
      }
    },

    definitionsChanged(orgIds) {
      for (const orgId of orgIds) {
        noteChange(orgChanged, orgId);
        markOrgDirty(orgId);
      }
      schedulePump();
    },

    devicesChanged(orgId, change) {
      facts.forget(orgId, change);
      noteChange(factsChanged, orgId);
      if (change.everyDevice) {
        noteChange(orgChanged, orgId);
        markOrgDirty(orgId);
      } else {
        for (const deviceId of change.deviceIds) etags.delete(keyOf(orgId, deviceId));
        markDirty(orgId, change.deviceIds);
      }
      schedulePump();
    },

    everythingChanged() {
      facts.clear();
      moment += 1;
      allChanged = moment;
      for (const orgId of watches.keys()) markOrgDirty(orgId);
      schedulePump();
    },

    watchers: () => openWatches,

    stop() {
      stopped = true;
      clearInterval(reconcileTimer);
      clearTimeout(retryTimer);
      clearTimeout(gathering);
      for (const ofOrg of watches.values()) {
        for (const ofDevice of ofOrg.values()) {
          for (const watch of ofDevice) {
            watch.ended = true;
            watch.wake();
          }
        }
      }
    },
  };
}

/** The refusal of a device that awaits approval, was revoked, or is not known any more. */
export function deviceNotActive(deviceId: string): Error {
  return fail(Reason.DEVICE_NOT_ACTIVE, "the device awaits approval or was revoked", { id: deviceId });
}

/** Takes up to a thousand devices of the organisation that has waited longest. */
function takeBatch(dirty: Map<string, Set<string>>): [string, string[]] | undefined {
  const first = dirty.entries().next();
  if (first.done) return undefined;
  const [orgId, marked] = first.value;
  dirty.delete(orgId);
  const all = [...marked];
  // The rest goes behind the other organisations.
  if (all.length > devicesAtOnce) dirty.set(orgId, new Set(all.slice(devicesAtOnce)));
  return [orgId, all.slice(0, devicesAtOnce)];
}

/** What a promise answers within a time; undefined if it takes longer or fails. */
async function within<T>(timeMs: number, work: Promise<T>): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), timeMs);
  });
  try {
    return await Promise.race([work.catch(() => undefined), late]);
  } finally {
    clearTimeout(timer);
  }
}

function keyOf(orgId: string, deviceId: string): string {
  return `${orgId} ${deviceId}`;
}

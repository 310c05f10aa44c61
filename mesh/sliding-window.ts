import { createHash } from "node:crypto";
import type { Redis } from "ioredis";
import { LRUCache } from "lru-cache";

/** How many points a key may take in any window. */
export interface Limit {
  readonly points: number;
  readonly windowMs: number;
}

/** What a window said of one take. */
export interface Take {
  readonly allowed: boolean;
  /** Points counted in the window, those of this take included if it was allowed. */
  readonly taken: number;
  /** Until the window is empty again if nothing more is taken. */
  readonly resetMs: number;
  /** Until the same take would be allowed; 0 where it was. */
  readonly retryAfterMs: number;
}

/** Counters of sliding windows, by key. */
export interface SlidingWindows {
  /** Takes points from a key's window if they fit, and counts nothing if not. With 0 points it only looks for 1. */
  take(key: string, limit: Limit, points: number): Promise<Take>;
}

/** Into how many slots a window is divided. */
const slotCount = 30;
/** Keys that are counted in memory at a time; beyond, those used longest ago are forgotten. */
const defaultMaxKeys = 100_000;

/**
 * Sliding windows in this process's memory. A window is counted in 30 slots of the clock, and the oldest slot counts
 * whole as long as any of it is within reach: in no window of time, wherever it begins, is more than the limit allowed;
 * what was taken is free again after one window and at most one slot (2 s of a minute).
 *
 * @param now milliseconds, of any clock; a clock that steps back holds the windows still
 */
export function createMemoryWindows(now: () => number, maxKeys = defaultMaxKeys): SlidingWindows {
  const windows = new LRUCache<string, Window>({ max: maxKeys });
  return {
    async take(key, limit, points) {
      const slotMs = limit.windowMs / slotCount;
      const time = now();
      let window = windows.get(key);
      if (window === undefined) {
        window = { slot: Math.floor(time / slotMs), counts: new Uint32Array(slotCount + 1), taken: 0 };
        if (points > 0) windows.set(key, window);
      }
      advance(window, Math.floor(time / slotMs));
      const allowed = window.taken + Math.max(1, points) <= limit.points;
      if (allowed) {
        window.taken += points;
        window.counts[window.slot % window.counts.length]! += points;
      }
      // The end of a slot's reach: one slot, and the window that follows it.
      const endOf = (slot: number): number => Math.max(1, Math.ceil((slot + slotCount + 1) * slotMs - time));
      return { allowed, taken: window.taken, ...waits(window, endOf, limit, points, allowed) };
    },
  };
}

/** `counts` is a ring of the slots up to `slot`, by the slot's number modulo its length; `taken` is their sum. */
interface Window {
  slot: number;
  readonly counts: Uint32Array;
  taken: number;
}

function advance(window: Window, slot: number): void {
  const { counts } = window;
  const steps = Math.min(slot - window.slot, counts.length);
  for (let step = 1; step <= steps; step += 1) {
    const index = (window.slot + step) % counts.length;
    window.taken -= counts[index]!;
    counts[index] = 0;
  }
  if (steps > 0) window.slot = slot;
}

function waits(
  window: Window,
  endOf: (slot: number) => number,
  limit: Limit,
  points: number,
  allowed: boolean,
): { resetMs: number; retryAfterMs: number } {
  const { counts, slot } = window;
  let left = window.taken;
  let resetMs = 0;
  let retryAfterMs: number | undefined;
  for (let each = slot - counts.length + 1; each <= slot; each += 1) {
    const count = counts[(each + counts.length) % counts.length]!;
    if (count === 0) continue;
    left -= count;
    resetMs = endOf(each);
    if (left + Math.max(1, points) <= limit.points) retryAfterMs ??= resetMs;
  }
  // Points that never fit: a window's wait is as good an answer as any.
  return { resetMs, retryAfterMs: allowed ? 0 : (retryAfterMs ?? limit.windowMs) };
}

/** The same on Redis: one hash for each key, its fields the slots. Runs alone, so that replicas cannot overtake each other. */
const takeScript = `
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local windowMs, slotCount, limit, points = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local slotMs = windowMs / slotCount
local current = math.floor(now / slotMs)
local needed = math.max(1, points)
local stored = redis.call('HGETALL', KEYS[1])
local slots, counts, taken = {}, {}, 0
for i = 1, #stored, 2 do
  local slot, count = tonumber(stored[i]), tonumber(stored[i + 1])
  if slot < current - slotCount then
    redis.call('HDEL', KEYS[1], stored[i])
  else
    slots[#slots + 1] = slot
    counts[slot] = count
    taken = taken + count
    if slot > current then current = slot end
  end
end
local allowed = taken + needed <= limit
if allowed and points > 0 then
  redis.call('HINCRBY', KEYS[1], string.format('%.0f', current), points)
  redis.call('PEXPIRE', KEYS[1], math.ceil(slotMs * (slotCount + 2)))
  if counts[current] == nil then slots[#slots + 1] = current end
  counts[current] = (counts[current] or 0) + points
  taken = taken + points
end
table.sort(slots)
local left, reset, retry = taken, 0, nil
for _, slot in ipairs(slots) do
  left = left - counts[slot]
  reset = math.max(1, math.ceil((slot + slotCount + 1) * slotMs - now))
  if retry == nil and left + needed <= limit then retry = reset end
end
if allowed then retry = 0 end
return { allowed and 1 or 0, taken, reset, retry or windowMs }
`;

const scriptDigest = createHash("sha1").update(takeScript).digest("hex");

/**
 * Sliding windows on Redis, exact across all replicas that share it, with the properties of those in memory. Keys are
 * digests, so that Redis holds no address or id, and expire with their window. One round trip for each take, rejecting
 * when Redis does not answer.
 *
 * @param now milliseconds; Redis's own clock if not given, so that the replicas' clocks need not agree
 */
export function createRedisWindows(redis: Redis, now?: () => number): SlidingWindows {
  return {
    async take(key, limit, points) {
      const digest = createHash("sha256").update(key).digest("base64url").slice(0, 22);
      const input = [now?.() ?? -1, limit.windowMs, slotCount, limit.points, points];
      const name = `octomesh:limit:${digest}`;
      const result = await redis.evalsha(scriptDigest, 1, name, ...input).catch((error: unknown) => {
        if (error instanceof Error && error.message.startsWith("NOSCRIPT"))
          return redis.eval(takeScript, 1, name, ...input);
        throw error;
      });
      const [allowed, taken, resetMs, retryAfterMs] = result as [number, number, number, number];
      return { allowed: allowed === 1, taken, resetMs, retryAfterMs };
    },
  };
}

/** Whether a device has been heard from lately. */
export type Presence = "online" | "stale" | "offline";

/** How many heartbeat intervals may pass before a device counts as stale. */
export const onlineIntervals = 3;

/** After how many milliseconds without a heartbeat a device counts as offline. */
export const staleMs = 86_400_000;

/**
 * The presence of a device that was last heard from at `lastHeartbeatMs` (undefined: never). Boundaries belong to the
 * livelier side. A heartbeat from the future, by a clock that stepped back, counts as now.
 */
export function presenceOf(lastHeartbeatMs: number | undefined, nowMs: number, intervalMs: number): Presence {
  if (lastHeartbeatMs === undefined) return "offline";
  const bounds = presenceBounds(nowMs, intervalMs);
  if (lastHeartbeatMs >= bounds.onlineSinceMs) return "online";
  return lastHeartbeatMs >= bounds.staleSinceMs ? "stale" : "offline";
}

/** The times since which a heartbeat makes a device online, or at least stale: what a filter on presence compares with. */
export function presenceBounds(nowMs: number, intervalMs: number): { onlineSinceMs: number; staleSinceMs: number } {
  const onlineSinceMs = nowMs - onlineIntervals * intervalMs;
  return { onlineSinceMs, staleSinceMs: Math.min(onlineSinceMs, nowMs - staleMs) };
}

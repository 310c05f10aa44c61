import type { Subject } from "./cohort.ts";

/** How many subjects that no rollout names one organisation's devices may report on within a day. */
export const maxUnknownSubjects = 256;

const periodMs = 86_400_000;
const maxOrganizations = 50_000;

/**
 * Bounds what devices can fill rollups with. Each subject (model, version, rollout) has rows of its own, and ids that no
 * rollout names, which may be those of versions that are older than any that is delivered, can be anything.
 */
export interface UnknownSubjects {
  /** Whether reports on a subject that no rollout names are still taken: the first so many of a day are, and stay so. */
  admit(orgId: string, subject: Subject, nowMs: number): boolean;
}

interface Day {
  readonly sinceMs: number;
  readonly admitted: Set<string>;
}

/** Starts with none. Counts in this process, for the organisations whose day began last. */
export function createUnknownSubjects(limit = maxUnknownSubjects): UnknownSubjects {
  const days = new Map<string, Day>();
  return {
    admit(orgId, { modelId, versionId, rolloutId }, nowMs) {
      let day = days.get(orgId);
      if (day === undefined || nowMs - day.sinceMs >= periodMs) {
        day = { sinceMs: nowMs, admitted: new Set() };
        days.delete(orgId);
        days.set(orgId, day);
        const oldest = days.keys().next();
        if (days.size > maxOrganizations && oldest.done !== true) days.delete(oldest.value);
      }
      const name = `${modelId}|${versionId}|${rolloutId}`;
      if (day.admitted.has(name)) return true;
      if (day.admitted.size >= limit) return false;
      day.admitted.add(name);
      return true;
    },
  };
}

/** How long a signing key signs: 90 days. */
export const keyLifeMs = 90 * 86_400_000;

/** How long a key is published before it signs, so that every service has it by then: a day. */
export const keyNoticeMs = 86_400_000;

/** How long a key stays published after its successor took over: the longest life of a token, 30 days, and a day. */
export const keyRetentionMs = 31 * 86_400_000;

/** When a key is in force from, milliseconds since the Unix epoch. */
export interface PlannedKey {
  readonly kid: string;
  readonly activateTime: number;
}

/** What is to be done about the signing keys now. */
export interface KeyPlan {
  /** Make a key that is in force from this time. */
  readonly create?: { readonly activateTime: number };
  /** Keys whose tokens have all expired. */
  readonly retire: readonly string[];
}

/** Plans the rotation of signing keys: the first at once, each next one a day ahead, the old ones kept for their tokens. */
export function planKeys(keys: readonly PlannedKey[], now: number): KeyPlan {
  const newestFirst = [...keys].sort((a, b) => b.activateTime - a.activateTime);
  const [newest] = newestFirst;
  if (newest === undefined) return { create: { activateTime: now }, retire: [] };
  const retire = newestFirst
    .filter((_, index) => {
      const successor = newestFirst[index - 1];
      return successor !== undefined && successor.activateTime + keyRetentionMs <= now;
    })
    .map((key) => key.kid);
  const due = newest.activateTime + keyLifeMs - keyNoticeMs;
  if (now < due) return { retire };
  return { create: { activateTime: Math.max(now, due) + keyNoticeMs }, retire };
}

/**
 * The key that signs now: the one that came into force last, or the first of all where the clock stands before it (it
 * was set back, or another replica's runs ahead). Undefined without keys.
 */
export function currentKey<K extends PlannedKey>(keys: readonly K[], now: number): K | undefined {
  const oldestFirst = [...keys].sort((a, b) => a.activateTime - b.activateTime);
  return oldestFirst.findLast((key) => key.activateTime <= now) ?? oldestFirst[0];
}

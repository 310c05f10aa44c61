/**
 * When a token is issued: now, or just after the latest revocation that concerns it, so that a token made after a
 * revocation is never taken for one made before, whatever the clocks of replicas say.
 */
export function issueTimeAfter(now: number, revoked: Date | undefined): number {
  return revoked === undefined ? now : Math.max(now, revoked.getTime() + 1);
}

/** When a revocation takes effect: now, or with the newest token that it must concern. */
export function revokeTimeFor(now: number, issued: Iterable<Date>): Date {
  let time = now;
  for (const date of issued) time = Math.max(time, date.getTime());
  return new Date(time);
}

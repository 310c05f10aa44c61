import { fail, Reason } from "./errors.ts";

/** How much work there is at a time. */
export interface TurnLimits {
  /** Works under way in all. */
  readonly total: number;
  /** Works under way for one owner: less than `total`, so that no owner keeps the others waiting. */
  readonly perOwner: number;
  /** Works of one owner that wait at most; beyond that they are refused. */
  readonly maxWaiting: number;
}

/** Lets expensive work have its turn: so much at a time, and owners one after the other. */
export interface Turns {
  /** Runs the work when its turn has come. Throws OVERLOADED where too much of the owner's is waiting already. */
  take<T>(owner: string, work: () => Promise<T>): Promise<T>;
}

/**
 * Turns for work that may occupy a resource for long, such as a read of much data a database connection: with fewer
 * turns than the resource has places, one organisation's reads cannot keep out what all others write.
 */
export function createTurns({ total, perOwner, maxWaiting }: TurnLimits): Turns {
  const running = new Map<string, number>();
  /** Owners whose turn is nearest first. */
  const waiting = new Map<string, (() => void)[]>();
  let all = 0;

  const begin = (owner: string): void => {
    all += 1;
    running.set(owner, (running.get(owner) ?? 0) + 1);
  };

  const end = (owner: string): void => {
    all -= 1;
    const left = (running.get(owner) ?? 1) - 1;
    if (left > 0) running.set(owner, left);
    else running.delete(owner);
    for (const [next, queue] of waiting) {
      if ((running.get(next) ?? 0) >= perOwner) continue;
      const start = queue.shift();
      // The owner goes behind the others.
      waiting.delete(next);
      if (queue.length > 0) waiting.set(next, queue);
      begin(next);
      start?.();
      return;
    }
  };

  return {
    async take(owner, work) {
      if (all < total && (running.get(owner) ?? 0) < perOwner) {
        begin(owner);
      } else {
        const queue = waiting.get(owner) ?? [];
        if (queue.length >= maxWaiting) {
          throw fail(Reason.OVERLOADED, "too much of this is under way already", {}, { retryAfterMs: 1000 });
        }
        waiting.set(owner, queue);
        await new Promise<void>((start) => queue.push(start));
      }
      try {
        return await work();
      } finally {
        end(owner);
      }
    },
  };
}

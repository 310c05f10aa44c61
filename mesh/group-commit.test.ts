import { Code } from "@connectrpc/connect";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { groupCommit } from "./group-commit.ts";

/** A clock that only a test moves. */
function manualClock() {
  let now = 0;
  const timers = new Map<() => void, number>();
  return {
    now: () => now,
    timers,
    schedule(callback: () => void, delayMs: number) {
      timers.set(callback, now + delayMs);
      return () => timers.delete(callback);
    },
    advance(ms: number) {
      now += ms;
      for (const [callback, due] of [...timers]) {
        if (due > now) continue;
        timers.delete(callback);
        callback();
      }
    },
  };
}

/** Lets every promise that is ready run. */
const settled = () => new Promise<void>((resolve) => setImmediate(resolve));

describe("groupCommit", () => {
  it("stores every accepted item once, in order, in batches of bounded size, whatever the rhythm", async () => {
    const steps = fc.array(
      fc.oneof(
        fc.record({ kind: fc.constant("submit" as const), count: fc.integer({ min: 1, max: 7 }) }),
        fc.record({ kind: fc.constant("advance" as const), ms: fc.integer({ min: 1, max: 15 }) }),
        fc.record({ kind: fc.constant("finish" as const), ok: fc.boolean() }),
      ),
      { maxLength: 40 },
    );
    await fc.assert(
      fc.asyncProperty(steps, fc.integer({ min: 1, max: 5 }), async (plan, maxItems) => {
        const clock = manualClock();
        const maxPending = maxItems + 5;
        const batches: number[][] = [];
        let finish: ((ok: boolean) => void) | undefined;
        const group = groupCommit<number, string>({
          maxDelayMs: 10,
          maxItems,
          maxPending,
          schedule: clock.schedule,
          flush: (items) => {
            if (finish !== undefined) throw new Error("two flushes at once");
            batches.push([...items]);
            return new Promise((resolve, reject) => {
              finish = (ok) => {
                finish = undefined;
                if (ok) resolve(items.map((item) => `stored ${item}`));
                else reject(new Error(`batch of ${items[0]}`));
              };
            });
          },
        });
        const outcomes = new Map<number, string>();
        const accepted: number[] = [];
        const failedItems = new Set<number>();
        let next = 0;
        for (const step of plan) {
          if (step.kind === "submit") {
            for (let n = 0; n < step.count; n++) {
              const item = next++;
              const room = group.pending() < maxPending;
              if (room) accepted.push(item);
              group.submit(item).then(
                (result) => outcomes.set(item, result),
                (error: Error & { code?: Code }) =>
                  outcomes.set(item, error.code === Code.ResourceExhausted ? "refused" : error.message),
              );
            }
          } else if (step.kind === "advance") {
            clock.advance(step.ms);
          } else if (finish !== undefined) {
            if (!step.ok) for (const item of batches.at(-1) ?? []) failedItems.add(item);
            finish(step.ok);
          }
          await settled();
          expect(group.pending()).toBeLessThanOrEqual(maxPending);
        }
        const closed = group.close();
        while (group.pending() > 0) {
          finish?.(true);
          await settled();
        }
        await closed;
        await settled();
        expect(batches.flat()).toEqual(accepted);
        for (const batch of batches) expect(batch.length).toBeLessThanOrEqual(maxItems);
        for (let item = 0; item < next; item++) {
          const batch = batches.find((items) => items.includes(item));
          const expected =
            batch === undefined ? "refused" : failedItems.has(item) ? `batch of ${batch[0]}` : `stored ${item}`;
          expect(outcomes.get(item)).toBe(expected);
        }
      }),
      { numRuns: 200 },
    );
  });

  it("flushes a lone item after the delay and not before, and a full batch at once", async () => {
    const clock = manualClock();
    const batches: string[][] = [];
    const group = groupCommit<string, string>({
      maxDelayMs: 10,
      maxItems: 3,
      maxPending: 9,
      schedule: clock.schedule,
      flush: async (items) => {
        batches.push([...items]);
        return items;
      },
    });
    const lone = group.submit("a");
    clock.advance(9);
    await settled();
    expect(batches).toEqual([]);
    clock.advance(1);
    expect(await lone).toBe("a");
    await Promise.all(["b", "c", "d"].map((item) => group.submit(item)));
    expect(batches).toEqual([["a"], ["b", "c", "d"]]);
    expect(clock.timers.size).toBe(0);
  });

  it("refuses what does not fit, and accepts again when there is room", async () => {
    let finish: () => void = () => {};
    const group = groupCommit<number, number>({
      maxDelayMs: 0,
      maxItems: 1,
      maxPending: 2,
      flush: (items) =>
        new Promise((resolve) => {
          finish = () => resolve(items);
        }),
    });
    const first = group.submit(1);
    const second = group.submit(2);
    await expect(group.submit(3)).rejects.toMatchObject({ code: Code.ResourceExhausted });
    finish();
    expect(await first).toBe(1);
    await settled();
    finish();
    expect(await second).toBe(2);
    const fourth = group.submit(4);
    await settled();
    finish();
    expect(await fourth).toBe(4);
  });

  it("treats a flush that throws at once, or answers too few results, as failed", async () => {
    let answer: () => Promise<number[]> = () => {
      throw new Error("at once");
    };
    const group = groupCommit<number, number>({ maxDelayMs: 0, maxItems: 2, maxPending: 4, flush: () => answer() });
    await expect(Promise.all([group.submit(1), group.submit(2)])).rejects.toThrow("at once");
    answer = async () => [1];
    await expect(Promise.all([group.submit(1), group.submit(2)])).rejects.toThrow("2 items answered 1");
  });

  it("stores what waits before it closes, and refuses afterwards", async () => {
    const stored: number[] = [];
    const group = groupCommit<number, number>({
      maxDelayMs: 60_000,
      maxItems: 10,
      maxPending: 10,
      flush: async (items) => {
        stored.push(...items);
        return items;
      },
    });
    const item = group.submit(1);
    await group.close();
    expect(await item).toBe(1);
    await expect(group.submit(2)).rejects.toMatchObject({ code: Code.Unavailable });
    await group.close();
    expect(stored).toEqual([1]);
  });
});

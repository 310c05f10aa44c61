import fc from "fast-check";
import { expect, it } from "vitest";
import type { Limit, SlidingWindows } from "../sliding-window.ts";

/** Windows of one implementation, on a clock that the suite sets. */
export interface WindowsFixture {
  readonly windows: SlidingWindows;
  /** The same counters as another replica sees them; the same object where there is one process only. */
  readonly others: readonly SlidingWindows[];
  readonly clock: { ms: number };
}

const minute: Limit = { points: 10, windowMs: 60_000 };
/** The grain of the windows, a thirtieth. */
const slotMs = 2_000;
let keys = 0;

/** What sliding windows do, whatever holds them. `fixture` is asked once for each test. */
export function slidingWindowSuite(fixture: () => WindowsFixture, numRuns: number): void {
  const freshKey = (): string => {
    keys += 1;
    return `key-${keys}`;
  };

  it("allow the limit, then refuse and say when to come back", async () => {
    const { windows, clock } = fixture();
    const key = freshKey();
    for (let i = 1; i <= 10; i += 1) {
      expect(await windows.take(key, minute, 1)).toMatchObject({ allowed: true, taken: i, retryAfterMs: 0 });
    }
    const refused = await windows.take(key, minute, 1);
    expect(refused).toMatchObject({ allowed: false, taken: 10 });
    expect(refused.retryAfterMs).toBeGreaterThanOrEqual(60_000);
    expect(refused.retryAfterMs).toBeLessThanOrEqual(60_000 + slotMs);
    expect(refused.resetMs).toBe(refused.retryAfterMs);
    clock.ms += refused.retryAfterMs - 1;
    expect(await windows.take(key, minute, 1)).toMatchObject({ allowed: false, retryAfterMs: 1 });
    clock.ms += 1;
    expect(await windows.take(key, minute, 10)).toMatchObject({ allowed: true, taken: 10 });
  });

  it("count keys apart", async () => {
    const { windows } = fixture();
    const [one, other] = [freshKey(), freshKey()];
    expect(await windows.take(one, minute, 10)).toMatchObject({ allowed: true });
    expect(await windows.take(other, minute, 10)).toMatchObject({ allowed: true });
  });

  it("do not count what they refuse, nor a look", async () => {
    const { windows } = fixture();
    const key = freshKey();
    expect(await windows.take(key, minute, 0)).toEqual({ allowed: true, taken: 0, resetMs: 0, retryAfterMs: 0 });
    expect(await windows.take(key, minute, 9)).toMatchObject({ allowed: true, taken: 9 });
    expect(await windows.take(key, minute, 2)).toMatchObject({ allowed: false, taken: 9 });
    expect(await windows.take(key, minute, 0)).toMatchObject({ allowed: true, taken: 9 });
    expect(await windows.take(key, minute, 1)).toMatchObject({ allowed: true, taken: 10 });
    const look = await windows.take(key, minute, 0);
    expect(look).toMatchObject({ allowed: false, taken: 10 });
    expect(look.retryAfterMs).toBeGreaterThan(0);
  });

  it("refuse more than the limit holds at any time, with a window's wait", async () => {
    const { windows } = fixture();
    expect(await windows.take(freshKey(), minute, 11)).toMatchObject({
      allowed: false,
      taken: 0,
      retryAfterMs: 60_000,
    });
  });

  it("hold still while the clock steps back", async () => {
    const { windows, clock } = fixture();
    const key = freshKey();
    await windows.take(key, minute, 10);
    clock.ms -= 30_000;
    expect(await windows.take(key, minute, 1)).toMatchObject({ allowed: false });
    clock.ms += 30_000 + 60_000 + slotMs;
    expect(await windows.take(key, minute, 1)).toMatchObject({ allowed: true });
  });

  it("hold in every stretch of one window, for all replicas together, and give back what they say", async () => {
    const steps = fc.array(
      fc.record({
        waitMs: fc.oneof(fc.integer({ min: 0, max: 3_000 }), fc.integer({ min: 0, max: 70_000 })),
        points: fc.integer({ min: 1, max: 6 }),
        replica: fc.nat(),
        obedient: fc.boolean(),
      }),
      { minLength: 1, maxLength: 40 },
    );
    await fc.assert(
      fc.asyncProperty(steps, async (taken) => {
        const { windows, others, clock } = fixture();
        const replicas = [windows, ...others];
        const key = freshKey();
        const accepted: { ms: number; points: number }[] = [];
        for (const { waitMs, points, replica, obedient } of taken) {
          clock.ms += waitMs;
          const at = replicas[replica % replicas.length]!;
          let result = await at.take(key, minute, points);
          const spent = sumSince(accepted, clock.ms - 60_000 - slotMs);
          if (!result.allowed) expect(spent + points).toBeGreaterThan(10);
          if (!result.allowed && obedient) {
            expect(result.retryAfterMs).toBeGreaterThan(0);
            clock.ms += result.retryAfterMs;
            result = await at.take(key, minute, points);
            expect(result.allowed).toBe(true);
          }
          if (result.allowed) accepted.push({ ms: clock.ms, points });
          expect(sumSince(accepted, clock.ms - 60_000)).toBeLessThanOrEqual(10);
        }
      }),
      { numRuns },
    );
  });

  it("let a steady caller have nearly the whole limit", async () => {
    const { windows, clock } = fixture();
    const key = freshKey();
    let allowed = 0;
    for (let i = 0; i < 1200; i += 1) {
      if ((await windows.take(key, minute, 1)).allowed) allowed += 1;
      clock.ms += 500;
    }
    // Ten minutes of asking twice a second: the first window whole, then at most a slot late for each.
    expect(allowed).toBeGreaterThanOrEqual(97);
    expect(allowed).toBeLessThanOrEqual(100);
  });

  it("allow exactly the limit to callers who come all at once", async () => {
    const { windows, others } = fixture();
    const replicas = [windows, ...others];
    const key = freshKey();
    const takes = await Promise.all(
      Array.from({ length: 100 }, (_, i) => replicas[i % replicas.length]!.take(key, minute, 1)),
    );
    expect(takes.filter(({ allowed }) => allowed)).toHaveLength(10);
  });
}

function sumSince(accepted: readonly { ms: number; points: number }[], sinceMs: number): number {
  let sum = 0;
  for (const { ms, points } of accepted) if (ms > sinceMs) sum += points;
  return sum;
}

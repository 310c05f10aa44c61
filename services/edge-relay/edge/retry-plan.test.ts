import fc from "fast-check";
import { expect, it } from "vitest";
import { planRetry } from "./retry-plan.ts";

const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });

it("waits longer after each attempt, never less than it was asked to, and never beyond the bundle's end", () => {
  fc.assert(
    fc.property(
      fc.record({
        attempts: fc.integer({ min: 0, max: 2_000 }),
        nowMs: fc.integer({ min: 0, max: 1e12 }),
        lifeMs: fc.integer({ min: -10, max: 300_000 }),
        retryAfterMs: fc.option(fc.integer({ min: 0, max: 120_000 }), { nil: undefined }),
        random,
      }),
      ({ attempts, nowMs, lifeMs, retryAfterMs, random }) => {
        const step = planRetry({ attempts, nowMs, expiresMs: nowMs + lifeMs, retryAfterMs, random });
        const backoff = Math.min(10_000, 250 * 2 ** Math.max(0, attempts - 1));
        const least = Math.max(backoff / 2, retryAfterMs ?? 0);
        if (step.action === "drop") expect(lifeMs).toBeLessThanOrEqual(Math.max(backoff, retryAfterMs ?? 0));
        else {
          expect(step.delayMs).toBeGreaterThanOrEqual(least);
          expect(step.delayMs).toBeLessThanOrEqual(Math.max(backoff, retryAfterMs ?? 0));
          expect(step.delayMs).toBeLessThan(lifeMs);
        }
      },
    ),
  );
});

it("spreads what failed at once", () => {
  const delays = [0, 0.5, 0.999].map((random) => planRetry({ attempts: 3, nowMs: 0, expiresMs: 1e6, random }));
  expect(delays.map((step) => (step.action === "wait" ? Math.round(step.delayMs) : 0))).toEqual([500, 750, 1000]);
});

/** Step in milliseconds of a clock too coarse to be seen ticking: the coarsest of any browser. */
export const unknownStepMs = 100;

/** Above this step, in milliseconds, the page's clock is of no use for round trips. */
export const maxStepMs = 2;

const ticks = 5;
const maxReadings = 100_000;

/**
 * Measures the resolution of a clock in milliseconds: the least of a few steps that it makes while it is read over and
 * over. Takes some 5 ms at a step of 1 ms. A clock that does not tick within 100,000 readings has `unknownStepMs`.
 */
export function measureClockStep(now: () => number): number {
  let least = Number.POSITIVE_INFINITY;
  let last = now();
  let seen = 0;
  for (let reading = 0; reading < maxReadings && seen < ticks; reading += 1) {
    const next = now();
    if (next > last) {
      least = Math.min(least, next - last);
      seen += 1;
    }
    last = next;
  }
  return Number.isFinite(least) ? Math.min(least, unknownStepMs) : unknownStepMs;
}

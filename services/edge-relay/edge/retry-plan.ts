/** What is to happen with a bundle whose forward failed. */
export type RetryStep = { readonly action: "wait"; readonly delayMs: number } | { readonly action: "drop" };

const firstDelayMs = 250;
const maxDelayMs = 10_000;

/**
 * Plans the next attempt: exponential backoff with full jitter between half and all of it, never sooner than the other
 * side asked, and none after the bundle's end. `random` is from 0 to below 1.
 */
export function planRetry(options: {
  readonly attempts: number;
  readonly nowMs: number;
  readonly expiresMs: number;
  readonly retryAfterMs?: number | undefined;
  readonly random: number;
}): RetryStep {
  const backoff = Math.min(maxDelayMs, firstDelayMs * 2 ** Math.min(30, Math.max(0, options.attempts - 1)));
  const delayMs = Math.max(backoff * (0.5 + options.random / 2), options.retryAfterMs ?? 0);
  return options.nowMs + delayMs >= options.expiresMs ? { action: "drop" } : { action: "wait", delayMs };
}

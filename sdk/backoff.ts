/** How attempts are spaced. */
export interface BackoffOptions {
  /** Ceiling of the first wait, in milliseconds. Default 100. */
  baseDelayMs?: number;
  /** Ceiling of every wait, in milliseconds. Default 5,000. */
  maxDelayMs?: number;
}

/**
 * How long to wait after the given failed attempt (1 is the first), in milliseconds: exponential with full jitter,
 * `random() * min(maxDelayMs, baseDelayMs * 2^(attempt - 1))`. `random` gives numbers in [0, 1).
 */
export function backoffMs(attempt: number, options: BackoffOptions = {}, random: () => number = Math.random): number {
  const base = options.baseDelayMs ?? 100;
  const max = options.maxDelayMs ?? 5_000;
  return random() * Math.min(max, base * 2 ** Math.min(Math.max(0, attempt - 1), 30));
}

/**
 * Spreads a time over [1 - share, 1 + share) of itself, so that a fleet that started together does not call together.
 * `share` is between 0 and 1, 0.1 if not given.
 */
export function jitteredMs(ms: number, random: () => number = Math.random, share = 0.1): number {
  return ms * (1 - share + random() * 2 * share);
}

import { setTimeout as delay } from "node:timers/promises";

/** How a wait ends. */
export interface WaitOptions {
  /** After this time the wait is over, in milliseconds. */
  timeoutMs: number;
  /** How often to look, in milliseconds. Default 20. */
  everyMs?: number;
  signal?: AbortSignal;
}

/** Waits until `isSo` answers true. Answers whether it came to that in time. */
export async function waitUntil(
  isSo: () => boolean | Promise<boolean>,
  { timeoutMs, everyMs = 20, signal }: WaitOptions,
): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    signal?.throwIfAborted();
    if (await isSo()) return true;
    if (performance.now() > deadline) return false;
    await delay(everyMs, undefined, { signal });
  }
}

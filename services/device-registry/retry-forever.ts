import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";

/** What to keep going. Times in milliseconds. */
export interface RetryForeverOptions {
  /** One attempt; it calls `progressed` when it works, which ends the backing off. */
  work(progressed: () => void): Promise<void>;
  readonly signal: AbortSignal;
  readonly log: Logger;
  /** What is followed, for the log. */
  readonly what: string;
  /** The first pause. Default 100. */
  readonly firstMs?: number;
  /** The longest pause. Default 5,000. */
  readonly lastMs?: number;
}

const quietFailures = 6;

/** Repeats work that should never end, with growing, jittered pauses while it fails. Resolves when the signal aborts. */
export async function retryForever(options: RetryForeverOptions): Promise<void> {
  const { work, signal, log, what, firstMs = 100, lastMs = 5_000 } = options;
  let pauseMs = firstMs;
  let failures = 0;
  while (!signal.aborted) {
    try {
      await work(() => {
        pauseMs = firstMs;
        failures = 0;
      });
      log.debug({ what }, "a stream ended; following it again");
    } catch (error) {
      if (signal.aborted) return;
      failures += 1;
      // Siblings that start or restart together lose each other for a moment, which is nobody's concern.
      const level = failures < quietFailures ? "debug" : "warn";
      log[level]({ err: error, what, pause_ms: pauseMs }, "a stream was lost; following it again");
    }
    await sleep(pauseMs * (0.5 + Math.random()), undefined, { signal, ref: false }).catch(() => undefined);
    pauseMs = Math.min(lastMs, pauseMs * 2);
  }
}

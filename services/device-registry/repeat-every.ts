import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";

/** Does work at once and then again and again until the signal aborts. A failure is logged and waits for the next turn. */
export async function repeatEvery(options: {
  /** The pause between turns, in milliseconds. */
  readonly everyMs: number;
  readonly signal: AbortSignal;
  readonly log: Logger;
  work(): Promise<void>;
}): Promise<void> {
  const { everyMs, signal, log, work } = options;
  while (!signal.aborted) {
    await work().catch((error: unknown) => {
      if (!signal.aborted) log.warn({ err: error }, "housekeeping failed");
    });
    await sleep(everyMs, undefined, { signal, ref: false }).catch(() => undefined);
  }
}

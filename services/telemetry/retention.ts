import { batchMemoryMs, type MeasureWindow } from "./measure-window.ts";
import { type Store, tables } from "./store.ts";

/** What retention needs. Durations in milliseconds. */
export interface RetentionOptions {
  readonly store: Pick<Store, "prune">;
  /** How long rollups are kept. */
  readonly keepMs: number;
  readonly window: MeasureWindow;
  /** Rows that one statement deletes at most. Default 5,000. */
  readonly chunkRows?: number;
  /** Stops between two statements. */
  readonly signal: AbortSignal;
}

/**
 * Deletes rollups from before the time they are kept for, and batches that no repetition can refer to any more, a
 * bounded number of rows per statement. Answers how many rows went. Safe to run twice at once, only wasteful.
 */
export async function pruneOnce(options: RetentionOptions, nowMs: number): Promise<number> {
  const { store, keepMs, window, signal } = options;
  const chunkRows = options.chunkRows ?? 5_000;
  let total = 0;
  for (const table of tables) {
    const beforeMs = nowMs - (table === "batches" ? batchMemoryMs(window) : keepMs);
    while (!signal.aborted) {
      const count = await store.prune(table, beforeMs, chunkRows);
      total += count;
      if (count < chunkRows) break;
    }
  }
  return total;
}

import { fail, Reason } from "./errors.ts";

/** What `groupCommit` needs. */
export interface GroupCommitOptions<Item, Result> {
  /** Longest wait of an item for company, while no flush is running. */
  maxDelayMs: number;
  /** Items per flush at most. */
  maxItems: number;
  /** Items waiting or being flushed at most; beyond that `submit` is refused with OVERLOADED. */
  maxPending: number;
  /** Stores a batch, in the order of submission; answers one result per item, in the same order. */
  flush(items: readonly Item[]): Promise<readonly Result[]>;
  /** For tests: how to wait. Default `setTimeout`; answers how to cancel. */
  schedule?: (callback: () => void, delayMs: number) => () => void;
}

/** Collects items into batches. */
export interface GroupCommit<Item, Result> {
  /** Settles when the item's batch has: with its result after the commit, or with the error of the whole flush. */
  submit(item: Item): Promise<Result>;
  /** Items waiting or being flushed. */
  pending(): number;
  /** Flushes what waits and resolves when nothing is pending; afterwards `submit` is refused with UNAVAILABLE. */
  close(): Promise<void>;
}

/**
 * Groups items that arrive one by one into batches that are stored together: the hot path costs one commit per batch,
 * and every submitter still learns of its own commit. One flush runs at a time, so batches are stored in the order of
 * submission; while it runs, what arrives gathers for the next, which follows at once. A flush that fails rejects its
 * own items only.
 */
export function groupCommit<Item, Result>(options: GroupCommitOptions<Item, Result>): GroupCommit<Item, Result> {
  const { maxDelayMs, maxItems, maxPending, flush } = options;
  const schedule = options.schedule ?? afterDelay;
  if (maxItems < 1 || maxPending < maxItems || maxDelayMs < 0) {
    throw new RangeError("groupCommit: need maxItems >= 1, maxPending >= maxItems and maxDelayMs >= 0");
  }
  interface Entry {
    item: Item;
    resolve(result: Result): void;
    reject(error: unknown): void;
  }
  let waiting: Entry[] = [];
  let flushing = 0;
  let running = false;
  let cancelTimer: (() => void) | undefined;
  let closing: Promise<void> | undefined;
  let drained: (() => void) | undefined;

  function arm(): void {
    if (running || waiting.length === 0) return;
    if (waiting.length >= maxItems || closing !== undefined) {
      start();
    } else if (cancelTimer === undefined) {
      cancelTimer = schedule(start, maxDelayMs);
    }
  }

  function start(): void {
    cancelTimer?.();
    cancelTimer = undefined;
    if (running || waiting.length === 0) return;
    running = true;
    const batch = waiting.slice(0, maxItems);
    waiting = waiting.slice(batch.length);
    flushing = batch.length;
    void store(batch).finally(() => {
      running = false;
      flushing = 0;
      // Those left have waited for a whole flush already.
      if (waiting.length > 0) start();
      else drained?.();
    });
  }

  async function store(batch: Entry[]): Promise<void> {
    try {
      const results = await flush(batch.map((entry) => entry.item));
      if (results.length !== batch.length) {
        throw new Error(`a flush of ${batch.length} items answered ${results.length} results`);
      }
      for (const [index, entry] of batch.entries()) entry.resolve(results[index] as Result);
    } catch (error) {
      for (const entry of batch) entry.reject(error);
    }
  }

  return {
    submit(item) {
      if (closing !== undefined) return Promise.reject(fail(Reason.SERVICE_UNAVAILABLE, "the service is stopping"));
      if (waiting.length + flushing >= maxPending) {
        return Promise.reject(
          fail(
            Reason.OVERLOADED,
            "too much work is waiting to be stored",
            {},
            { retryAfterMs: Math.max(100, maxDelayMs) },
          ),
        );
      }
      return new Promise<Result>((resolve, reject) => {
        waiting.push({ item, resolve, reject });
        arm();
      });
    },
    pending: () => waiting.length + flushing,
    close() {
      closing ??= new Promise<void>((resolve) => {
        drained = resolve;
      });
      if (waiting.length + flushing === 0) drained?.();
      else arm();
      return closing;
    },
  };
}

function afterDelay(callback: () => void, delayMs: number): () => void {
  const timer = setTimeout(callback, delayMs);
  return () => clearTimeout(timer);
}

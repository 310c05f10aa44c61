/** A deadline that several measurements share. */
export interface Budget {
  /** Fires when the time is over or the caller gave up: everything that is open then closes. */
  readonly signal: AbortSignal;
  /** What ended it; undefined while it lasts, and where `close` ended it. */
  readonly ended: "timeout" | "aborted" | undefined;
  /** Ends it: whatever is still open closes, and its timer and its listener are gone. May be called again. */
  close(): void;
}

/** Starts a budget of `limitMs` that also ends with `outer`. Close it when the work is done. */
export function createBudget(limitMs: number, outer?: AbortSignal): Budget {
  const controller = new AbortController();
  let ended: Budget["ended"];
  const finish = (how: Budget["ended"]): void => {
    if (controller.signal.aborted) return;
    ended = how;
    clearTimeout(timer);
    outer?.removeEventListener("abort", abort);
    controller.abort();
  };
  const abort = (): void => finish("aborted");
  const timer = setTimeout(() => finish("timeout"), limitMs);
  outer?.addEventListener("abort", abort);
  if (outer?.aborted === true) abort();
  return {
    signal: controller.signal,
    get ended() {
      return ended;
    },
    close: () => finish(undefined),
  };
}

/** Calls `then` once when the signal fires, at once if it has. Returns how to take that back. */
export function onAbort(signal: AbortSignal, then: () => void): () => void {
  if (signal.aborted) {
    then();
    return () => undefined;
  }
  signal.addEventListener("abort", then, { once: true });
  return () => signal.removeEventListener("abort", then);
}

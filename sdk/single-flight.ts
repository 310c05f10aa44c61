/**
 * Runs an asynchronous function at most once at a time: calls that come while one is under way share its outcome, and
 * the first call after it has settled starts the next.
 */
export function singleFlight<T>(run: () => Promise<T>): () => Promise<T> {
  let current: Promise<T> | undefined;
  return () => {
    current ??= (async () => {
      try {
        return await run();
      } finally {
        current = undefined;
      }
    })();
    return current;
  };
}

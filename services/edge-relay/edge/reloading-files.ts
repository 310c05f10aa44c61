/** How often files are looked at again at most, milliseconds. */
const defaultEveryMs = 2_000;

/**
 * Gives what files hold, read again when asked and at most every `everyMs`. What `isGood` refuses, being half written, and
 * what cannot be read, being replaced, is passed over: the last that was good stands. Throws where the first read does.
 */
export function createReloadingFiles<T>(options: {
  read(): T;
  isGood(value: T): boolean;
  readonly everyMs?: number;
  readonly now?: () => number;
}): () => T {
  const { read, isGood, everyMs = defaultEveryMs, now = performance.now.bind(performance) } = options;
  let last = read();
  let readAtMs = now();
  return () => {
    if (now() - readAtMs < everyMs) return last;
    readAtMs = now();
    try {
      const next = read();
      if (isGood(next)) last = next;
    } catch {
      // A file that is being replaced is not there for a moment.
    }
    return last;
  };
}

/** Callbacks by key, at most so many at a time. */
export interface Waiters {
  /** Adds a callback; undefined where there are too many. Returns the way to take it back. */
  add(key: string, callback: () => void): (() => void) | undefined;
  /** Calls back everyone who waits for the key. */
  wake(key: string): void;
  wakeAll(): void;
  readonly size: number;
}

/** Makes an empty set of waiters. */
export function createWaiters(maxWaiters = 10_000): Waiters {
  const waiting = new Map<string, Set<() => void>>();
  let size = 0;
  const wake = (key: string): void => {
    for (const callback of [...(waiting.get(key) ?? [])]) callback();
  };
  return {
    get size() {
      return size;
    },
    add(key, callback) {
      if (size >= maxWaiters) return undefined;
      const callbacks = waiting.get(key) ?? new Set();
      waiting.set(key, callbacks);
      const own = (): void => callback();
      callbacks.add(own);
      size += 1;
      return () => {
        if (!callbacks.delete(own)) return;
        size -= 1;
        if (callbacks.size === 0 && waiting.get(key) === callbacks) waiting.delete(key);
      };
    },
    wake,
    wakeAll() {
      for (const key of [...waiting.keys()]) wake(key);
    },
  };
}

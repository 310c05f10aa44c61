/** Keeps what channels measured until the report that names them comes. */
export interface ChannelStore<T> {
  /** Keeps a result for 60 s; the oldest goes where there are too many. */
  put(id: string, value: T): void;
  /** Gives a result, once. */
  take(id: string): T | undefined;
  readonly size: number;
}

/** Opens a store of at most `maxEntries` results, 20,000 by default. */
export function createChannelStore<T>(now: () => number, maxEntries = 20_000, lifetimeMs = 60_000): ChannelStore<T> {
  const entries = new Map<string, { value: T; expiresMs: number }>();
  return {
    get size() {
      return entries.size;
    },
    put(id, value) {
      for (const [oldest, entry] of entries) {
        if (entries.size < maxEntries && entry.expiresMs > now()) break;
        entries.delete(oldest);
      }
      entries.set(id, { value, expiresMs: now() + lifetimeMs });
    },
    take(id) {
      const entry = entries.get(id);
      entries.delete(id);
      return entry !== undefined && entry.expiresMs > now() ? entry.value : undefined;
    },
  };
}

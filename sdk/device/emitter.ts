/** Tells listeners what happens. `Events` maps the name of each event to what it brings. */
export interface Emitter<Events> {
  /** Listens; the answer stops listening. A listener that throws is reported, and disturbs nobody else. */
  on<Name extends keyof Events>(name: Name, listener: (detail: Events[Name]) => void): () => void;
  /** Tells. */
  emit<Name extends keyof Events>(name: Name, detail: Events[Name]): void;
}

/** Makes an emitter. `onThrow` gets what listeners throw. */
export function createEmitter<Events>(onThrow: (error: unknown) => void): Emitter<Events> {
  const listeners = new Map<keyof Events, Set<(detail: never) => void>>();
  return {
    on(name, listener) {
      const set = listeners.get(name) ?? new Set();
      listeners.set(name, set);
      set.add(listener as (detail: never) => void);
      return () => void set.delete(listener as (detail: never) => void);
    },
    emit(name, detail) {
      for (const listener of [...(listeners.get(name) ?? [])]) {
        try {
          (listener as (detail: unknown) => void)(detail);
        } catch (error) {
          onThrow(error);
        }
      }
    },
  };
}

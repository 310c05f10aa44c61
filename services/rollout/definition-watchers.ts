import type { Clock } from "@octomesh/mesh/clock";

/** One open watch of definitions in this process. */
export interface DefinitionWatcher {
  /** A message is on its way to the peer. */
  busy(): void;
  /** The peer took the message, and there is nothing more for it now. */
  idle(): void;
  /** Notes that the peer took a message with this rollout at this revision. */
  told(rolloutId: string, revision: bigint): void;
  /** The watch has ended. */
  end(): void;
}

/** The watches that are open in this process, and what their peers were told of rollbacks. */
export interface DefinitionWatchers {
  begin(): DefinitionWatcher;
  /**
   * Whether every open watch has been told of a rollout at this revision, or a later one. A watch that has had nothing
   * to send for a second while events come within a fraction of one has been told everything before: for peers that
   * resumed behind the event. The change must be two seconds old.
   */
  allTold(rolloutId: string, revision: bigint): boolean;
}

interface Watch {
  readonly revisions: Map<string, bigint>;
  /** Since when nothing is on its way; undefined while something is. */
  idleSinceMs: number | undefined;
}

const maxRemembered = 10_000;
const quietMs = 1_000;

/** Starts with no watches. */
export function createDefinitionWatchers(clock: Clock): DefinitionWatchers {
  const watches = new Set<Watch>();
  return {
    begin() {
      const watch: Watch = { revisions: new Map(), idleSinceMs: clock.now() };
      watches.add(watch);
      return {
        busy() {
          watch.idleSinceMs = undefined;
        },
        idle() {
          watch.idleSinceMs = clock.now();
        },
        told(rolloutId, revision) {
          watch.revisions.delete(rolloutId);
          watch.revisions.set(rolloutId, revision);
          const oldest = watch.revisions.keys().next();
          if (watch.revisions.size > maxRemembered && oldest.done !== true) watch.revisions.delete(oldest.value);
        },
        end() {
          watches.delete(watch);
        },
      };
    },
    allTold(rolloutId, revision) {
      const quietSinceMs = clock.now() - quietMs;
      return [...watches].every(
        ({ revisions, idleSinceMs }) =>
          (revisions.get(rolloutId) ?? 0n) >= revision || (idleSinceMs !== undefined && idleSinceMs <= quietSinceMs),
      );
    },
  };
}

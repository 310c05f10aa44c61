import type { Caller } from "./caller.ts";
import type { Clock } from "./clock.ts";
import { fail, Reason } from "./errors.ts";
import { type Revocations, Subject } from "./revocations.ts";
import { isRevokedCaller, subjectsOf } from "./revoked-caller.ts";

/** Watches over one call that outlives its admission. */
export interface Guard {
  /** Aborts with CREDENTIAL_REVOKED, CREDENTIAL_EXPIRED or REVOCATIONS_STALE. */
  readonly signal: AbortSignal;
  /** Ends the watch. To be called when the call has ended; more than once does no harm. */
  release(): void;
}

/** Watches over calls under way. */
export interface Guards {
  /** Starts to watch. The signal is aborted already where the credential was revoked since the call was admitted. */
  guard(caller: Caller): Guard;
  /** How many calls are watched. */
  readonly size: number;
  /** Stops watching. */
  close(): void;
}

/** What the guards need. */
export interface GuardsOptions {
  readonly revocations: Revocations;
  readonly clock: Clock;
  /** How often expiry and staleness are looked at. Default 1 s. */
  readonly everyMs?: number;
}

interface Watched {
  readonly caller: Caller;
  readonly controller: AbortController;
}

/**
 * Opens the guards: one subscription to revocations and one timer for all calls, so that ten thousand streams cost no
 * more than one. A revocation ends the calls that it concerns at once; expiry and staleness are noticed within `everyMs`.
 */
export function createGuards(options: GuardsOptions): Guards {
  const { revocations, clock } = options;
  const watched = new Set<Watched>();
  const bySubject = new Map<string, Set<Watched>>();
  let timer: NodeJS.Timeout | undefined;

  const release = (entry: Watched): void => {
    if (!watched.delete(entry)) return;
    for (const key of keysOf(entry.caller)) {
      const others = bySubject.get(key);
      others?.delete(entry);
      if (others?.size === 0) bySubject.delete(key);
    }
    if (watched.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };
  const end = (entry: Watched, reason: unknown): void => {
    release(entry);
    entry.controller.abort(reason);
  };
  const check = (): void => {
    const now = clock.now();
    const isFresh = revocations.isFresh();
    for (const entry of [...watched]) {
      if ((entry.caller.expiresMs ?? Number.POSITIVE_INFINITY) <= now) {
        end(entry, fail(Reason.CREDENTIAL_EXPIRED, "the credential has expired"));
      } else if (!isFresh) {
        end(entry, fail(Reason.REVOCATIONS_STALE, "revocations cannot be checked now", {}, { retryAfterMs: 1000 }));
      }
    }
  };
  const unsubscribe = revocations.onRevocation(({ subject, id }) => {
    for (const entry of [...(bySubject.get(keyOf(subject, id)) ?? [])]) {
      if (isRevokedCaller(entry.caller, revocations)) end(entry, revoked());
    }
  });

  return {
    get size() {
      return watched.size;
    },
    guard(caller) {
      const entry: Watched = { caller, controller: new AbortController() };
      // Between the admission and now a revocation may have come, which nobody would tell again.
      if (isRevokedCaller(caller, revocations)) {
        entry.controller.abort(revoked());
        return { signal: entry.controller.signal, release: () => undefined };
      }
      watched.add(entry);
      for (const key of keysOf(caller)) {
        const others = bySubject.get(key);
        if (others === undefined) bySubject.set(key, new Set([entry]));
        else others.add(entry);
      }
      timer ??= setInterval(check, options.everyMs ?? 1000).unref();
      return { signal: entry.controller.signal, release: () => release(entry) };
    },
    close() {
      unsubscribe();
      clearInterval(timer);
      timer = undefined;
      watched.clear();
      bySubject.clear();
    },
  };
}

function keysOf(caller: Caller): string[] {
  return subjectsOf(caller).map(([subject, id]) => keyOf(subject, id));
}

function keyOf(subject: Subject, id: string): string {
  return `${Subject[subject]}:${id}`;
}

function revoked(): Error {
  return fail(Reason.CREDENTIAL_REVOKED, "the credential was revoked");
}

import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import type {
  CredentialService,
  WatchRevocationsResponse_Revocation,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import type { Logger } from "pino";
import type { Clock } from "./clock.ts";

export { Subject };

/** What has been revoked, as this process knows it. */
export interface Revocations {
  /** Whether a revocation of this subject concerns a credential that was issued at `issuedMs` (ms since the epoch; 0 for credentials without an issue time, which any revocation concerns). */
  isRevoked(subject: Subject, id: string, issuedMs: number): boolean;
  /** False while the process cannot know what was revoked: then nobody is accepted. */
  isFresh(): boolean;
  /** Calls back on each revocation as it is applied. Returns the way to stop it. */
  onRevocation(callback: (revocation: WatchRevocationsResponse_Revocation) => void): () => void;
  /** Follows identity until stopped. Resolves once everything revoked before is known. */
  start(): Promise<void>;
  /** Says good-bye to identity, so that no revoke waits for this process. */
  stop(): Promise<void>;
}

/** What the follower needs. */
export interface RevocationsOptions {
  readonly client: Client<typeof CredentialService>;
  /** One name per process and service. */
  readonly subscriberId: string;
  readonly clock: Clock;
  readonly log: Logger;
  /** How long after the last word from identity credentials are still accepted. Default 5 s. */
  readonly staleAfterMs?: number;
}

/** About four seconds of attempts: the warning comes before what is known is stale. */
const quietFailures = 8;

interface Entry {
  readonly revokedMs: number;
  readonly forgetMs: number;
}

/**
 * Follows identity's stream of revocations and reports what was applied, so that a revoke is answered only when it
 * holds everywhere. Reconnects with back-off from the last cursor; without word for `staleAfterMs` it is not fresh.
 */
export function createRevocations(options: RevocationsOptions): Revocations {
  const { client, subscriberId, clock, log } = options;
  const staleAfterMs = options.staleAfterMs ?? 5000;
  const entries = new Map<string, Entry>();
  const callbacks = new Set<(revocation: WatchRevocationsResponse_Revocation) => void>();
  const stopped = new AbortController();
  let cursor = "";
  let heardMs = Number.NEGATIVE_INFINITY;
  let caughtUp = false;
  let acknowledged: string | undefined;
  let acknowledging: Promise<void> | undefined;
  let following: Promise<void> | undefined;
  let nextSweepMs = 0;

  const apply = (revocation: WatchRevocationsResponse_Revocation): void => {
    const key = `${revocation.subject}:${revocation.id}`;
    const revokedMs = revocation.revokeTime === undefined ? clock.now() : timestampMs(revocation.revokeTime);
    const forgetMs =
      revocation.forgetTime === undefined ? Number.POSITIVE_INFINITY : timestampMs(revocation.forgetTime);
    const known = entries.get(key);
    entries.set(key, {
      revokedMs: Math.max(revokedMs, known?.revokedMs ?? 0),
      forgetMs: Math.max(forgetMs, known?.forgetMs ?? 0),
    });
    for (const callback of callbacks) callback(revocation);
  };

  const sweep = (): void => {
    const now = clock.now();
    if (now < nextSweepMs) return;
    nextSweepMs = now + 60_000;
    for (const [key, entry] of entries) if (entry.forgetMs < now) entries.delete(key);
  };

  /** One acknowledgement is under way at a time; the newest cursor goes next. */
  const acknowledge = (): void => {
    if (acknowledging !== undefined) return;
    acknowledging = (async () => {
      while (acknowledged !== cursor && !stopped.signal.aborted) {
        const reached = cursor;
        await client.acknowledgeRevocations({ subscriberId, cursor: reached }, { timeoutMs: 2000 });
        acknowledged = reached;
      }
    })()
      .catch((error: unknown) => log.debug({ err: error }, "revocations: acknowledgement failed"))
      .finally(() => {
        acknowledging = undefined;
      });
  };

  let attempt = new AbortController();
  let silence: NodeJS.Timeout | undefined;
  let staleness: NodeJS.Timeout | undefined;
  /** Identity beats every second: a stream that has gone silent is given up. */
  const heard = (isCaughtUp: boolean): void => {
    clearTimeout(silence);
    silence = setTimeout(() => attempt.abort(), staleAfterMs).unref();
    if (!isCaughtUp) return;
    heardMs = clock.now();
    // Beside the clock, which somebody may set back.
    clearTimeout(staleness);
    staleness = setTimeout(() => {
      heardMs = Number.NEGATIVE_INFINITY;
    }, staleAfterMs).unref();
  };

  const follow = async (onCaughtUp: () => void): Promise<void> => {
    let failures = 0;
    while (!stopped.signal.aborted) {
      attempt = new AbortController();
      const end = (): void => attempt.abort();
      stopped.signal.addEventListener("abort", end, { once: true });
      // A stream that resumes says nothing of now until it has caught up with what was missed meanwhile.
      let isCaughtUp = false;
      heard(false);
      try {
        const stream = client.watchRevocations({ subscriberId, cursor }, { signal: attempt.signal });
        for await (const message of stream) {
          for (const revocation of message.revocations) apply(revocation);
          const moved = message.cursor !== cursor;
          cursor = message.cursor;
          isCaughtUp ||= message.caughtUp;
          heard(isCaughtUp);
          failures = 0;
          if (isCaughtUp && !caughtUp) {
            caughtUp = true;
            onCaughtUp();
          }
          // Beats are acknowledged too: they renew this subscriber's lease.
          if (!moved) acknowledged = undefined;
          acknowledge();
          sweep();
        }
      } catch (error) {
        // Siblings that start or stop together lose each other for a moment, which is nobody's concern.
        const level = failures < quietFailures ? "debug" : "warn";
        if (!stopped.signal.aborted) log[level]({ err: error }, "revocations: stream lost");
      } finally {
        stopped.signal.removeEventListener("abort", end);
      }
      failures += 1;
      await pause(Math.min(2000, 25 * 2 ** Math.min(failures, 7)) * (0.5 + Math.random() / 2), stopped.signal);
    }
    clearTimeout(silence);
    clearTimeout(staleness);
  };

  return {
    isRevoked(subject, id, issuedMs) {
      const entry = entries.get(`${subject}:${id}`);
      return entry !== undefined && issuedMs <= entry.revokedMs;
    },
    isFresh: () => caughtUp && clock.now() - heardMs <= staleAfterMs,
    onRevocation(callback) {
      callbacks.add(callback);
      return () => callbacks.delete(callback);
    },
    start() {
      return new Promise<void>((resolve) => {
        following = follow(resolve);
      });
    },
    async stop() {
      stopped.abort();
      await following;
      await client
        .acknowledgeRevocations({ subscriberId, cursor, leaving: true }, { timeoutMs: 500 })
        .catch(() => undefined);
    },
  };
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const timer = setTimeout(done, ms);
    function done(): void {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
    signal.addEventListener("abort", done, { once: true });
  });
}

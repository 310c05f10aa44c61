import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import { fail, Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { appendOutbox, compareCursors, type Outbox, type WatchedEvent } from "@octomesh/mesh/outbox";
import {
  type WatchRevocationsResponse_Revocation as Revocation,
  WatchRevocationsResponse_RevocationSchema as RevocationSchema,
  type WatchRevocationsResponse_Revocation_Subject as Subject,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import type { Logger } from "pino";
import { openControlSession } from "./control-session.ts";
import type { IdentitySchema, IdentityTransaction } from "./schema.ts";
import {
  deleteSubscriber,
  listRevocations,
  listSubscribers,
  type RevocationRow,
  renewSubscriber,
  upsertRevocation,
} from "./store/revocations.ts";

/** Topic of revocations in the outbox. */
export const revocationTopic = "revocations";

/** How long a revoke waits for a subscriber that has gone silent, milliseconds. Subscribers refuse everybody by then. */
export const subscriberLeaseMs = 5_000;

/** Interval of beats, milliseconds. */
const beatMs = 1_000;
const pageRows = 1_000;
const rememberedEvents = 10_000;
/** Interval at which acknowledgements that reached another replica are looked for, milliseconds. */
const pollMs = 20;

/** A revocation to be recorded. Tokens issued up to `revokeTime` are refused; it is forgotten after `forgetTime`. */
export interface NewRevocation {
  readonly subject: Subject;
  readonly orgId: string;
  readonly id: string;
  readonly revokeTime: Date;
  readonly forgetTime: Date;
  /** Digest of the credential, for those that services keep by it. */
  readonly digest?: Buffer;
}

/** One message of a watch. */
export interface WatchMessage {
  readonly cursor: string;
  readonly revocations: Revocation[];
  readonly caughtUp: boolean;
}

/** Records revocations, streams them to the services of the mesh, and knows how far each has come. */
export interface RevocationLog {
  /** Records revocations in the transaction of the change. Answers what `settle` waits for. */
  record(tx: IdentityTransaction, ...revocations: NewRevocation[]): Promise<string>;
  /**
   * Resolves when every subscriber whose lease runs has applied what was recorded and committed. Throws
   * DEADLINE_EXCEEDED if one that is alive does not: the revocation stands, and repeating the call waits again.
   */
  settle(recorded: string | undefined): Promise<void>;
  /**
   * Streams to a subscriber: from the cursor on, or, if that is empty or too old, first everything that still matters.
   * A beat every second says that nothing else happened; it is sent only while the database can be read.
   */
  watch(subscriber: { id: string; peer: string }, cursor: string, signal: AbortSignal): AsyncGenerator<WatchMessage>;
  /** Notes how far a subscriber has come, and renews its lease. */
  acknowledge(subscriber: { id: string; peer: string }, cursor: string): Promise<void>;
  /** Ends a subscriber's lease. */
  leave(subscriber: { id: string; peer: string }): Promise<void>;
  /** Begins to follow the outbox. Resolves when it does: `settle` knows what is recorded from then on. */
  start(): Promise<void>;
  stop(): Promise<void>;
}

/** Opens the log of revocations. */
export function openRevocationLog(options: {
  database: Database<IdentitySchema>;
  outbox: Outbox;
  clock: Clock;
  log: Logger;
  leaseMs?: number;
}): RevocationLog {
  const { database, outbox, clock, log } = options;
  const leaseMs = options.leaseMs ?? subscriberLeaseMs;
  const control = openControlSession(database);
  /** Cursors of the newest events, by key. */
  const seen = new Map<string, string>();
  /** Woken by each event and each acknowledgement of this process. */
  const waiting = new Set<() => void>();
  const stopped = new AbortController();
  let following: Promise<void> | undefined;
  let probing: Promise<void> | undefined;

  function wake(): void {
    for (const resolve of waiting) resolve();
  }

  /** Waits for `wake`, at most so long. */
  async function change(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        waiting.delete(done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      waiting.add(done);
    });
  }

  /** Follows the outbox from now on, and says when it does. */
  async function follow(begun: () => void): Promise<void> {
    let cursor: string | undefined;
    while (!stopped.signal.aborted) {
      try {
        cursor ??= await outbox.head(revocationTopic);
        begun();
        for await (const event of outbox.watch({ topic: revocationTopic, cursor, signal: stopped.signal })) {
          cursor = event.cursor;
          seen.set(event.key, event.cursor);
          const [oldest] = seen.keys();
          if (seen.size > rememberedEvents && oldest !== undefined) seen.delete(oldest);
          wake();
        }
      } catch (error) {
        if (stopped.signal.aborted) break;
        log.warn({ err: error }, "revocations cannot be followed");
        if (reasonOf(error) === Reason.CURSOR_EXPIRED) cursor = undefined;
        await change(250);
      }
    }
    begun();
  }

  /** One round trip to the database, shared by the beats of all streams that fall together. */
  function probe(): Promise<void> {
    probing ??= control
      .query("select 1")
      .then(() => undefined)
      .finally(() => {
        probing = undefined;
      });
    return probing;
  }

  async function* snapshot(): AsyncGenerator<Revocation[]> {
    let after: RevocationRow | undefined;
    for (;;) {
      const rows = await database.system((tx) =>
        listRevocations(tx, new Date(clock.now()), { limit: pageRows, after }),
      );
      yield rows.map(messageOf);
      after = rows.at(-1);
      if (rows.length < pageRows) return;
    }
  }

  async function* watch(
    subscriber: { id: string; peer: string },
    from: string,
    signal: AbortSignal,
  ): AsyncGenerator<WatchMessage> {
    const left = new AbortController();
    const ended = AbortSignal.any([signal, stopped.signal, left.signal]);
    // From here on revokes wait for this subscriber: what they record is in the snapshot or in the stream.
    await renewSubscriber(control, { ...subscriber, cursor: "" }, leaseMs);
    let cursor = from;
    let isResumed = from !== "";
    while (!ended.aborted) {
      if (!isResumed) {
        cursor = await outbox.head(revocationTopic);
        for await (const revocations of snapshot()) yield { cursor: "", revocations, caughtUp: false };
        yield { cursor, revocations: [], caughtUp: true };
      }
      try {
        const events = outbox.watch({ topic: revocationTopic, cursor, signal: ended });
        for await (const event of withBeats(events, () => left.abort())) {
          if (event === undefined) {
            await probe();
            yield { cursor, revocations: [], caughtUp: true };
          } else {
            cursor = event.cursor;
            const revocation = fromBinary(RevocationSchema, event.payload);
            yield { cursor, revocations: [revocation], caughtUp: !isResumed };
          }
        }
        return;
      } catch (error) {
        const reason = reasonOf(error);
        // A cursor from before the oldest event, or of another database's history: everything again.
        if (reason !== Reason.CURSOR_EXPIRED && reason !== Reason.REQUEST_MALFORMED) throw error;
        isResumed = false;
      }
    }
  }

  return {
    async record(tx, ...revocations) {
      let key = "";
      for (const revocation of revocations) {
        const row = await upsertRevocation(tx, {
          org_id: revocation.orgId,
          subject: revocation.subject,
          id: revocation.id,
          revoke_time: revocation.revokeTime,
          forget_time: revocation.forgetTime,
          digest: revocation.digest ?? null,
        });
        key = newId("evt");
        const payload = toBinary(RevocationSchema, messageOf(row));
        await appendOutbox(tx, { topic: revocationTopic, orgId: revocation.orgId, key, payload });
      }
      return key;
    },
    async settle(recorded) {
      if (recorded === undefined || recorded === "") return;
      const deadline = performance.now() + 2 * leaseMs;
      let behind: readonly string[] = ["identity"];
      while (performance.now() < deadline && !stopped.signal.aborted) {
        const cursor = seen.get(recorded);
        if (cursor !== undefined) {
          const subscribers = await listSubscribers(control);
          behind = subscribers
            .filter((subscriber) => subscriber.cursor === "" || compareCursors(subscriber.cursor, cursor) < 0)
            .map((subscriber) => subscriber.id);
          if (behind.length === 0) return;
        }
        await change(pollMs);
      }
      log.error({ behind }, "a revocation is recorded, but not every live service has said that it applied it");
      throw fail(
        Reason.DEADLINE_EXCEEDED,
        "the revocation is recorded, but not yet applied everywhere: repeat the call to wait for it",
        { behind: behind.join(",").slice(0, 256) },
        { retryAfterMs: 1_000 },
      );
    },
    watch,
    async acknowledge(subscriber, cursor) {
      // A text that is no cursor must not stand in the way of every revoke.
      if (cursor !== "") compareCursors(cursor, cursor);
      await renewSubscriber(control, { ...subscriber, cursor }, leaseMs);
      wake();
    },
    async leave({ id, peer }) {
      await deleteSubscriber(control, id, peer);
      wake();
    },
    start() {
      return new Promise((begun) => {
        following ??= follow(begun);
      });
    },
    async stop() {
      stopped.abort();
      wake();
      await following;
      await control.close();
    },
  };
}

/**
 * Events as they come, and `undefined` for every second in which none does. Ends when the source does; `leave` makes the
 * source end where the reader stops first.
 */
async function* withBeats(
  source: AsyncIterable<WatchedEvent>,
  leave: () => void,
): AsyncGenerator<WatchedEvent | undefined> {
  const iterator = source[Symbol.asyncIterator]();
  let next: Promise<IteratorResult<WatchedEvent>> | undefined;
  try {
    for (;;) {
      next ??= iterator.next();
      const result = await beforeBeat(next);
      if (result === undefined) {
        yield undefined;
        continue;
      }
      next = undefined;
      if (result.done === true) return;
      yield result.value;
    }
  } catch (error) {
    next = undefined;
    throw error;
  } finally {
    if (next !== undefined) {
      leave();
      await next.catch(() => undefined);
    }
  }
}

async function beforeBeat<T>(promise: Promise<T>): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const beat = new Promise<undefined>((resolve) => {
    timer = setTimeout(resolve, beatMs, undefined);
  });
  try {
    return await Promise.race([promise, beat]);
  } finally {
    clearTimeout(timer);
  }
}

function messageOf(row: RevocationRow): Revocation {
  return create(RevocationSchema, {
    subject: row.subject,
    id: row.id,
    orgId: row.org_id,
    revokeTime: timestampFromDate(row.revoke_time),
    forgetTime: timestampFromDate(row.forget_time),
    digest: row.digest === null ? new Uint8Array() : new Uint8Array(row.digest),
  });
}

/**
 * Events that are written in the transaction of the change they tell of, and watched from a cursor.
 *
 * **Order and completeness.** An event's position is (transaction id, event id). A reader is shown the events of a
 * transaction only once every transaction with a smaller id has ended (`xid < pg_snapshot_xmin(…)`), so nothing can
 * later appear behind a cursor, in whatever order concurrent writers commit. The price: a long transaction with
 * changes delays the events of the others; transactions here are bounded by the database's timeouts.
 *
 * **Delivery** is at least once: a consumer stores the cursor of what it has applied and resumes there; its work is
 * idempotent. To begin: `head`, then read the state, then watch from that cursor. The same when a watch fails with
 * CURSOR_EXPIRED.
 *
 * **Latency.** One connection per process polls for all watchers: every 50 ms, or every 250 ms while LISTEN works and
 * only as a backstop. Commits of this process wake it at once; those of other replicas by NOTIFY, sent after the
 * commit and not in it, for NOTIFY in a transaction makes commits wait for each other.
 */
import { type Kysely, sql, type Transaction } from "kysely";
import type pg from "pg";
import type { Logger } from "pino";
import type { Database } from "./database.ts";
import { mapDatabaseError } from "./database-error.ts";
import { fail, Reason, reasonOf } from "./errors.ts";
import { transactionContext } from "./transaction-context.ts";

/** An event as it is appended. */
export interface OutboxEvent {
  /** Lower-case words with `.`, `_` or `-`, up to 64 characters: what a watcher subscribes to. */
  topic: string;
  /** Organisation of the change; "" for the mesh itself (system role only). */
  orgId: string;
  /** What changed, up to 512 bytes, such as a device id. */
  key: string;
  /** Up to 1 MiB, by convention a protobuf message. */
  payload: Uint8Array;
}

/** An event as a watcher gets it. */
export interface WatchedEvent {
  /** Resume after this event from here. Opaque; up to 40 characters; only compared by `compareCursors`. */
  cursor: string;
  orgId: string;
  key: string;
  payload: Uint8Array;
  /** When it was appended, milliseconds since the epoch, by the database's clock. */
  time: number;
}

/** What to watch. */
export interface WatchOptions {
  topic: string;
  /** From `head` or the last event applied; "" for the first event ever, CURSOR_EXPIRED once that was trimmed. */
  cursor: string;
  /** Ends the iteration quietly. */
  signal: AbortSignal;
}

/** The outbox of one service's database in this process. */
export interface Outbox {
  /**
   * Every event of a topic after the cursor, in order, without end. Waits out a database that is away. Throws
   * CURSOR_EXPIRED when events after the cursor were trimmed or the cursor is of another database's history, and
   * REQUEST_MALFORMED for a text that is no cursor.
   */
  watch(options: WatchOptions): AsyncIterable<WatchedEvent>;
  /** A cursor from which a watch misses nothing that a transaction begun after this call does not see. */
  head(topic: string): Promise<string>;
  /** Deletes up to `limit` (default 10,000) events older than this, of all topics. Answers how many. */
  trim(options: { olderThanMs: number; limit?: number }): Promise<number>;
  /** Ends every watch quietly and the connection. */
  close(): Promise<void>;
}

/** How the outbox polls; the defaults suit everything but tests. */
export interface OutboxOptions {
  log: Logger;
  /** Interval while nothing wakes it and LISTEN is not available. Default and maximum 50. */
  pollMs?: number;
  /** Interval while LISTEN works. Default 250. */
  backstopMs?: number;
  /** Events read at once. Default 500. */
  batchSize?: number;
  /** Newest events kept in memory per watched topic, so that many watchers read the database once. Default 1,000. */
  memoryEvents?: number;
}

const maxMemoryBytes = 4 * 1024 * 1024;
/** While committed events wait for an older transaction to end. */
const pendingPollMs = 5;
const minBackoffMs = 50;
const maxBackoffMs = 5_000;

/**
 * Appends events in a transaction of any role; the app and ingest roles can do it only for their organisations. They
 * become visible to watchers after the commit. `payload`, `key` and `topic` out of bounds fail the transaction.
 */
export async function appendOutbox<DB>(tx: Transaction<DB>, ...events: OutboxEvent[]): Promise<void> {
  if (events.length === 0) return;
  const { announceEvents, afterCommit } = transactionContext(tx);
  await sql`insert into outbox (topic, org_id, key, payload)
    select * from unnest(
      ${events.map((event) => event.topic)}::text[], ${events.map((event) => event.orgId)}::text[],
      ${events.map((event) => event.key)}::text[], ${events.map((event) => Buffer.from(event.payload))}::bytea[]
    )`.execute(tx);
  if (!afterCommit.includes(announceEvents)) afterCommit.push(announceEvents);
}

/** Orders two cursors of one outbox: negative when `a` comes first. Throws REQUEST_MALFORMED for what is no cursor. */
export function compareCursors(a: string, b: string): number {
  return compare(parseCursor(a), parseCursor(b));
}

/** A place in the order of events: before it everything, after it nothing was delivered. */
interface Position {
  xid: bigint;
  id: bigint;
}

interface Positioned {
  position: Position;
  event: WatchedEvent;
}

/** What one topic's watchers share: the newest events, without gaps after `from`. */
interface Tail {
  watchers: number;
  /** Undefined until the first poll has found where the topic stands. */
  from: Position | undefined;
  end: Position | undefined;
  events: Positioned[];
  bytes: number;
  /** Resolves waiting watchers. */
  waiting: Set<() => void>;
}

interface EventRow {
  xid: string;
  id: bigint;
  org_id: string;
  key: string;
  payload: Buffer;
  time: Date;
}

/** Opens the outbox of a database. Connects with the first watch or append, not before. */
export function openOutbox<DB>(database: Database<DB>, options: OutboxOptions): Outbox {
  const { log } = options;
  const pollMs = Math.min(50, options.pollMs ?? 50);
  const backstopMs = options.backstopMs ?? 250;
  const batchSize = options.batchSize ?? 500;
  const memoryEvents = options.memoryEvents ?? 1_000;
  const channel = `${database.schema}_outbox`;
  const tails = new Map<string, Tail>();
  const closed = new AbortController();
  let announce = false;
  let awake: (() => void) | undefined;
  let wakePending = false;
  let loop: Promise<void> | undefined;

  const stopListening = database.onEvents(() => {
    announce = true;
    wake();
    run();
  });

  function wake(): void {
    wakePending = true;
    awake?.();
  }

  /** Sleeps until woken, closed or out of time. */
  async function sleep(ms: number): Promise<void> {
    if (!wakePending && !closed.signal.aborted) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms);
        awake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      awake = undefined;
    }
    wakePending = false;
  }

  function run(): void {
    if (loop !== undefined || closed.signal.aborted) return;
    loop = poll().finally(() => {
      loop = undefined;
      // What came between the last look and the end of the loop starts it again.
      if (announce || tails.size > 0) run();
    });
  }

  async function poll(): Promise<void> {
    let session: pg.Client | undefined;
    let listening = false;
    let backoffMs = minBackoffMs;
    const lost = () => {
      session = undefined;
      wake();
    };
    while ((tails.size > 0 || announce) && !closed.signal.aborted) {
      try {
        if (session === undefined) {
          session = await database.session();
          session.once("end", lost);
          listening = await listen(session);
        }
        if (announce) {
          announce = false;
          if (listening) await session.query("select pg_notify($1, '')", [channel]);
        }
        const more = tails.size > 0 ? await pollTails(session) : "idle";
        backoffMs = minBackoffMs;
        if (more === "pending") await sleep(pendingPollMs);
        else if (more === "idle" && (tails.size > 0 || announce)) await sleep(listening ? backstopMs : pollMs);
      } catch (error) {
        if (closed.signal.aborted) break;
        log.warn({ err: error, retryMs: backoffMs }, "the outbox cannot be read");
        session?.off("end", lost);
        await session?.end().catch(() => {});
        session = undefined;
        await pause(backoffMs * (0.5 + Math.random() / 2), closed.signal);
        backoffMs = Math.min(maxBackoffMs, backoffMs * 2);
      }
    }
    session?.off("end", lost);
    await session?.end().catch(() => {});
  }

  async function listen(session: pg.Client): Promise<boolean> {
    try {
      const { rows } = await session.query<{ pid: number }>("select pg_backend_pid() as pid");
      const own = rows[0]?.pid;
      session.on("notification", (message) => {
        if (message.processId !== own) wake();
      });
      await session.query(`listen ${channel}`);
      return true;
    } catch (error) {
      // A pooler in between may not carry it; polling alone is enough.
      if (reasonOf(mapDatabaseError(error)) === Reason.DEPENDENCY_UNAVAILABLE) throw error;
      return false;
    }
  }

  /** Reads what is new on every watched topic: "full" when there is more at once, "pending" when it will be soon. */
  async function pollTails(session: pg.Client): Promise<"full" | "pending" | "idle"> {
    const topics = [...tails.keys()];
    const ends = topics.map((topic) => tails.get(topic)?.end);
    const { rows } = await session.query<Partial<EventRow> & { topic: string; xmin: string; pending: boolean }>(
      `select t.topic, pg_snapshot_xmin(pg_current_snapshot())::text as xmin,
         exists (select from outbox o where o.topic = t.topic
                 and o.xid >= pg_snapshot_xmin(pg_current_snapshot())) as pending,
         e.xid::text as xid, e.id, e.org_id, e.key, e.payload, e.time
       from unnest($1::text[], $2::xid8[], $3::bigint[]) as t (topic, xid, id)
       left join lateral (
         select o.* from outbox o
         where o.topic = t.topic and (o.xid, o.id) > (t.xid, t.id)
           and o.xid < pg_snapshot_xmin(pg_current_snapshot())
         order by o.xid, o.id limit $4
       ) e on true
       order by e.xid, e.id`,
      [
        topics,
        ends.map((end) => end?.xid.toString() ?? null),
        ends.map((end) => end?.id.toString() ?? null),
        batchSize,
      ],
    );
    const counts = new Map<string, number>();
    for (const row of rows) {
      const tail = tails.get(row.topic);
      if (tail === undefined) continue;
      if (tail.end === undefined || tail.from === undefined) {
        // A new topic begins at the horizon; what is older, watchers read by themselves.
        tail.from = tail.end = { xid: BigInt(row.xmin), id: 0n };
        notify(tail);
      } else if (isEventRow(row)) {
        push(tail, positioned(row));
        counts.set(row.topic, (counts.get(row.topic) ?? 0) + 1);
      }
    }
    for (const topic of counts.keys()) {
      const tail = tails.get(topic);
      if (tail !== undefined) notify(tail);
    }
    if ([...counts.values()].some((count) => count >= batchSize)) return "full";
    return rows.some((row) => row.pending) ? "pending" : "idle";
  }

  function push(tail: Tail, item: Positioned): void {
    tail.events.push(item);
    tail.bytes += item.event.payload.length;
    tail.end = item.position;
    if (tail.events.length <= memoryEvents && tail.bytes <= maxMemoryBytes) return;
    // Half at once, so that the cost of moving the rest is spread over many events.
    const dropped = tail.events.splice(0, Math.max(1, Math.ceil(tail.events.length / 2)));
    tail.from = dropped.at(-1)?.position ?? tail.from;
    for (const { event } of dropped) tail.bytes -= event.payload.length;
  }

  function notify(tail: Tail): void {
    for (const resolve of tail.waiting) resolve();
  }

  function join(topic: string): Tail {
    let tail = tails.get(topic);
    if (tail === undefined) {
      tail = { watchers: 0, from: undefined, end: undefined, events: [], bytes: 0, waiting: new Set() };
      tails.set(topic, tail);
    }
    tail.watchers++;
    wake();
    run();
    return tail;
  }

  function leave(topic: string, tail: Tail): void {
    tail.watchers--;
    if (tail.watchers > 0) return;
    tails.delete(topic);
    wake();
  }

  async function* watch({ topic, cursor, signal }: WatchOptions): AsyncGenerator<WatchedEvent> {
    let position = parseCursor(cursor);
    const ended = AbortSignal.any([signal, closed.signal]);
    if (ended.aborted) return;
    const tail = join(topic);
    let checked = false;
    let backoffMs = minBackoffMs;
    try {
      while (!ended.aborted) {
        if (checked && tail.from !== undefined && compare(position, tail.from) >= 0) {
          const at = indexAfter(tail.events, position);
          const items = tail.events.slice(at, at + batchSize);
          for (const item of items) {
            yield item.event;
            position = item.position;
            if (ended.aborted) return;
          }
          if (items.length === 0) await change(tail, ended);
          continue;
        }
        let batch: Batch;
        try {
          batch = await readBatch(database, topic, position, batchSize);
          backoffMs = minBackoffMs;
        } catch (error) {
          if (ended.aborted) return;
          if (reasonOf(error) !== Reason.DEPENDENCY_UNAVAILABLE) throw error;
          await pause(backoffMs * (0.5 + Math.random() / 2), ended);
          backoffMs = Math.min(maxBackoffMs, backoffMs * 2);
          continue;
        }
        if (batch.expired) {
          throw fail(Reason.CURSOR_EXPIRED, "cursor expired: read the whole state and watch from its cursor", {
            topic,
          });
        }
        checked = true;
        for (const item of batch.items) {
          yield item.event;
          position = item.position;
          if (ended.aborted) return;
        }
        if (batch.items.length < batchSize) {
          // Everything below the horizon was delivered.
          if (compare(position, batch.horizon) < 0) position = batch.horizon;
          if (tail.from === undefined) await change(tail, ended);
        }
      }
    } finally {
      leave(topic, tail);
    }
  }

  return {
    watch,
    async head() {
      const horizon = await database.system(async (tx) => {
        const { rows } = await sql<{
          xmin: string;
        }>`select pg_snapshot_xmin(pg_current_snapshot())::text as xmin`.execute(tx);
        return rows[0]?.xmin;
      });
      return formatCursor({ xid: BigInt(horizon ?? 0), id: 0n });
    },
    async trim({ olderThanMs, limit = 10_000 }) {
      return await database.system(async (tx) => {
        const { rows } = await sql<{ count: bigint }>`
          with old as (
            select topic, xid, id from outbox
            where time < clock_timestamp() - ${olderThanMs} * interval '1 millisecond'
              and xid < pg_snapshot_xmin(pg_current_snapshot())
            order by time limit ${limit}
          ), gone as (
            delete from outbox o using old where (o.topic, o.xid, o.id) = (old.topic, old.xid, old.id)
            returning o.topic, o.xid, o.id
          ), marked as (
            insert into outbox_trimmed as t (topic, xid, id)
            select distinct on (topic) topic, xid, id from gone order by topic, xid desc, id desc
            on conflict (topic) do update set xid = excluded.xid, id = excluded.id
            where (t.xid, t.id) < (excluded.xid, excluded.id)
          )
          select count(*) as count from gone`.execute(tx);
        return Number(rows[0]?.count ?? 0n);
      });
    },
    async close() {
      stopListening();
      closed.abort();
      announce = false;
      wake();
      for (const tail of tails.values()) notify(tail);
      await loop;
    },
  };
}

/** Waits until a tail has more or the watch has ended. */
async function change(tail: Tail, ended: AbortSignal): Promise<void> {
  if (ended.aborted) return;
  await new Promise<void>((resolve) => {
    const done = () => {
      tail.waiting.delete(done);
      ended.removeEventListener("abort", done);
      resolve();
    };
    tail.waiting.add(done);
    ended.addEventListener("abort", done);
  });
}

interface Batch {
  expired: boolean;
  items: Positioned[];
  /** Every event before this position is committed and, if it still exists, readable. */
  horizon: Position;
}

/** One statement, one snapshot: what follows the cursor, and whether anything that followed it is gone. */
async function readBatch<DB>(database: Database<DB>, topic: string, after: Position, limit: number): Promise<Batch> {
  return await database.system(async (tx: Kysely<DB>) => {
    const { rows } = await sql<Partial<EventRow> & { xmin: string; expired: boolean }>`
      select s.xmin, s.expired, e.xid::text as xid, e.id, e.org_id, e.key, e.payload, e.time
      from (
        select pg_snapshot_xmin(pg_current_snapshot())::text as xmin,
          ${after.xid.toString()}::xid8 > pg_snapshot_xmax(pg_current_snapshot())
          or exists (
            select from outbox_trimmed
            where topic = ${topic} and (xid, id) > (${after.xid.toString()}::xid8, ${after.id.toString()}::bigint)
          ) as expired
      ) s
      left join lateral (
        select * from outbox
        where topic = ${topic} and (xid, id) > (${after.xid.toString()}::xid8, ${after.id.toString()}::bigint)
          and xid < pg_snapshot_xmin(pg_current_snapshot())
        order by xid, id limit ${limit}
      ) e on true
      order by e.xid, e.id`.execute(tx);
    return {
      expired: rows[0]?.expired === true,
      items: rows.filter(isEventRow).map(positioned),
      horizon: { xid: BigInt(rows[0]?.xmin ?? 0), id: 0n },
    };
  });
}

function isEventRow<T extends Partial<EventRow>>(row: T): row is T & EventRow {
  return row.xid !== undefined && row.xid !== null;
}

function positioned(row: EventRow): Positioned {
  const position = { xid: BigInt(row.xid), id: row.id };
  const { org_id: orgId, key, payload, time } = row;
  return { position, event: { cursor: formatCursor(position), orgId, key, payload, time: time.getTime() } };
}

function indexAfter(events: readonly Positioned[], position: Position): number {
  let low = 0;
  let high = events.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    const item = events[middle];
    if (item !== undefined && compare(item.position, position) <= 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

function compare(a: Position, b: Position): number {
  if (a.xid !== b.xid) return a.xid < b.xid ? -1 : 1;
  if (a.id !== b.id) return a.id < b.id ? -1 : 1;
  return 0;
}

function formatCursor({ xid, id }: Position): string {
  return `${xid.toString(36)}.${id.toString(36)}`;
}

function parseCursor(cursor: string): Position {
  if (cursor === "") return { xid: 0n, id: 0n };
  const match = /^([0-9a-z]{1,12})\.([0-9a-z]{1,12})$/.exec(cursor);
  if (match === null) throw fail(Reason.REQUEST_MALFORMED, "this is no cursor of a watch");
  return { xid: parseBase36(match[1] ?? ""), id: parseBase36(match[2] ?? "") };
}

function parseBase36(text: string): bigint {
  let value = 0n;
  for (const digit of text) value = value * 36n + BigInt(Number.parseInt(digit, 36));
  return value;
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}

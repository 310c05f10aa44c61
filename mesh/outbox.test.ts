import fc from "fast-check";
import { sql } from "kysely";
import pg from "pg";
import pino from "pino";
import { describe, expect, it } from "vitest";
import { Reason, reasonOf } from "./errors.ts";
import { appendOutbox, compareCursors, type Outbox, openOutbox, type WatchedEvent } from "./outbox.ts";
import { openTestDatabase, testCall, writeMigrations } from "./test/database-fixture.ts";

const database = await openTestDatabase<Record<never, never>>({
  service: "mesh-test",
  migrations: await writeMigrations({}),
});
const log = pino({ level: "silent" });
const orgId = "org_a";
let topics = 0;

function newTopic(): string {
  return `topic-${++topics}`;
}

async function append(topic: string, ...keys: string[]): Promise<void> {
  await database.write(testCall(orgId), (tx) =>
    appendOutbox(tx, ...keys.map((key) => ({ topic, orgId, key, payload: Buffer.from(key) }))),
  );
}

/** Reads until `count` events have come. */
async function take(outbox: Outbox, topic: string, cursor: string, count: number): Promise<WatchedEvent[]> {
  const stop = new AbortController();
  const events: WatchedEvent[] = [];
  for await (const event of outbox.watch({ topic, cursor, signal: stop.signal })) {
    events.push(event);
    if (events.length >= count) stop.abort();
  }
  return events;
}

async function withOutbox<T>(fn: (outbox: Outbox) => Promise<T>, options = {}): Promise<T> {
  const outbox = openOutbox(database, { log, ...options });
  try {
    return await fn(outbox);
  } finally {
    await outbox.close();
  }
}

describe("appendOutbox", () => {
  it("is visible after the commit and not after a rollback, with organisation, key, payload and time", async () => {
    const topic = newTopic();
    const failed = database.write(testCall(orgId), async (tx) => {
      await appendOutbox(tx, { topic, orgId, key: "lost", payload: new Uint8Array() });
      throw new Error("no");
    });
    await expect(failed).rejects.toThrow("no");
    await append(topic, "kept");
    await withOutbox(async (outbox) => {
      const [event] = await take(outbox, topic, "", 1);
      expect(event).toMatchObject({ orgId, key: "kept" });
      expect(Buffer.from(event?.payload ?? []).toString()).toBe("kept");
      expect(Math.abs((event?.time ?? 0) - Date.now())).toBeLessThan(60_000);
    });
  });

  it("is refused for another organisation in the app and ingest roles, and readable to neither", async () => {
    const foreign = { topic: "t", orgId: "org_b", key: "k", payload: new Uint8Array() };
    await expect(database.write(testCall(orgId), (tx) => appendOutbox(tx, foreign))).rejects.toMatchObject({
      code: "42501",
    });
    await expect(database.ingest([orgId], (tx) => appendOutbox(tx, foreign))).rejects.toMatchObject({ code: "42501" });
    await database.ingest([orgId, "org_b"], (tx) => appendOutbox(tx, foreign, { ...foreign, orgId }));
    await expect(database.read(orgId, (tx) => sql`select * from outbox`.execute(tx))).rejects.toMatchObject({
      code: "42501",
    });
  });

  it("refuses topics, keys and payloads out of bounds", async () => {
    const event = { topic: "t", orgId, key: "k", payload: new Uint8Array() };
    for (const wrong of [{ topic: "T" }, { key: "k".repeat(513) }, { payload: new Uint8Array(1024 * 1024 + 1) }]) {
      const write = database.write(testCall(orgId), (tx) => appendOutbox(tx, { ...event, ...wrong }));
      await expect(write).rejects.toMatchObject({ code: "23514" });
    }
  });
});

describe("watch", () => {
  it("delivers every event exactly once and in order, whatever order concurrent writers commit in", async () => {
    const topic = newTopic();
    const writers = 6;
    const each = 40;
    const total = writers * each;
    await withOutbox(
      async (outbox) => {
        const start = await outbox.head(topic);
        const follower = take(outbox, topic, start, total);
        await Promise.all(
          Array.from({ length: writers }, async (_, writer) => {
            for (let n = 0; n < each; n++) {
              await database.write(testCall(orgId), async (tx) => {
                await appendOutbox(tx, { topic, orgId, key: `${writer}/${n}`, payload: Buffer.alloc(n) });
                // The transaction has its place in the order now, and commits at a random later time.
                await sql`select pg_sleep(${Math.random() * 0.01})`.execute(tx);
              });
            }
          }),
        );
        const events = await follower;
        expect(new Set(events.map((event) => event.key)).size).toBe(total);
        for (const [index, event] of events.entries()) {
          const before = events[index - 1];
          if (before !== undefined) expect(compareCursors(before.cursor, event.cursor)).toBeLessThan(0);
        }
        // From any cursor: the same events that followed it the first time.
        await fc.assert(
          fc.asyncProperty(fc.integer({ min: 0, max: total - 2 }), async (index) => {
            const rest = await take(outbox, topic, events[index]?.cursor ?? "", total - 1 - index);
            expect(rest.map((event) => event.key)).toEqual(events.slice(index + 1).map((event) => event.key));
          }),
          { numRuns: 15 },
        );
      },
      { batchSize: 16, memoryEvents: 50 },
    );
  });

  it("holds back what an older open transaction could still precede", async () => {
    const topic = newTopic();
    await withOutbox(async (outbox) => {
      const start = await outbox.head(topic);
      let finish: () => void = () => {};
      const open = new Promise<void>((resolve) => {
        finish = resolve;
      });
      let opened: () => void = () => {};
      const began = new Promise<void>((resolve) => {
        opened = resolve;
      });
      const older = database.write(testCall(orgId), async (tx) => {
        await appendOutbox(tx, { topic, orgId, key: "older", payload: new Uint8Array() });
        opened();
        await open;
      });
      await began;
      await append(topic, "younger");
      const both = take(outbox, topic, start, 2);
      // A head taken now does not skip the transaction that is still open.
      const middle = await outbox.head(topic);
      finish();
      await older;
      expect((await both).map((event) => event.key)).toEqual(["older", "younger"]);
      expect((await take(outbox, topic, middle, 2)).map((event) => event.key)).toEqual(["older", "younger"]);
    });
  });

  it("hears of another replica's commits", async () => {
    const topic = newTopic();
    const replica = await database.reopen();
    const there = openOutbox(replica, { log });
    try {
      await withOutbox(async (outbox) => {
        const heard = take(there, topic, await there.head(topic), 3);
        for (const key of ["1", "2", "3"]) await append(topic, key);
        expect((await heard).map((event) => event.key)).toEqual(["1", "2", "3"]);
        expect(outbox).toBeDefined();
      });
    } finally {
      await there.close();
    }
  });

  it("serves many watchers of one topic, each its own place", async () => {
    const topic = newTopic();
    await append(topic, ...Array.from({ length: 30 }, (_, n) => `old ${n}`));
    await withOutbox(async (outbox) => {
      const head = await outbox.head(topic);
      const watchers = Array.from({ length: 40 }, (_, n) =>
        n % 2 === 0 ? take(outbox, topic, "", 40) : take(outbox, topic, head, 10),
      );
      for (let n = 0; n < 10; n++) await append(topic, `new ${n}`);
      const results = await Promise.all(watchers);
      for (const [n, events] of results.entries()) {
        expect(events).toHaveLength(n % 2 === 0 ? 40 : 10);
        expect(events.at(-1)?.key).toBe("new 9");
      }
    });
  });

  it("survives the loss of every connection", async () => {
    const topic = newTopic();
    await withOutbox(async (outbox) => {
      const events = take(outbox, topic, await outbox.head(topic), 2);
      await append(topic, "before");
      const admin = new pg.Client({ connectionString: database.adminUrl });
      await admin.connect();
      await admin.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
      );
      await admin.end();
      await expect
        .poll(() =>
          append(topic, "after").then(
            () => true,
            () => false,
          ),
        )
        .toBe(true);
      expect((await events).map((event) => event.key)).toEqual(["before", "after"]);
    });
  });

  it("ends quietly when its signal aborts or the outbox closes", async () => {
    const topic = newTopic();
    const outbox = openOutbox(database, { log });
    const stop = new AbortController();
    const stopped = (async () => {
      for await (const _ of outbox.watch({ topic, cursor: "", signal: stop.signal })) throw new Error("nothing came");
    })();
    const left = take(outbox, topic, "", 1);
    stop.abort();
    await stopped;
    await outbox.close();
    expect(await left).toEqual([]);
  });

  it("refuses a text that is no cursor, and a cursor of another history", async () => {
    await withOutbox(async (outbox) => {
      for (const cursor of ["x", "1.", "1.2.3", "1.2'", "A.b", "1".repeat(30)]) {
        await expect(take(outbox, "t", cursor, 1)).rejects.toSatisfy(
          (error) => reasonOf(error) === Reason.REQUEST_MALFORMED,
        );
      }
      await expect(take(outbox, "t", "zzzzzzzzzzz.1", 1)).rejects.toSatisfy(
        (error) => reasonOf(error) === Reason.CURSOR_EXPIRED,
      );
    });
  });
});

describe("trim", () => {
  it("deletes by age, and tells a watcher that was behind, and only that one", async () => {
    const topic = newTopic();
    await withOutbox(async (outbox) => {
      await append(topic, "1", "2", "3");
      const [first, , third] = await take(outbox, topic, "", 3);
      const admin = new pg.Client({ connectionString: database.adminUrl });
      await admin.connect();
      await admin.query("update mesh_test.outbox set time = time - interval '2 hours' where topic = $1", [topic]);
      await admin.end();
      await append(topic, "4");
      expect(await outbox.trim({ olderThanMs: 3_600_000, limit: 2 })).toBe(2);
      expect(await outbox.trim({ olderThanMs: 3_600_000 })).toBe(1);
      expect(await outbox.trim({ olderThanMs: 3_600_000 })).toBe(0);
      for (const cursor of ["", first?.cursor ?? ""]) {
        await expect(take(outbox, topic, cursor, 1)).rejects.toSatisfy(
          (error) => reasonOf(error) === Reason.CURSOR_EXPIRED,
        );
      }
      const rest = await take(outbox, topic, third?.cursor ?? "", 1);
      expect(rest.map((event) => event.key)).toEqual(["4"]);
    });
  });
});

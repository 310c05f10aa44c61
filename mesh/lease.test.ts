import { sql } from "kysely";
import pg from "pg";
import pino from "pino";
import { describe, expect, it } from "vitest";
import { acquireLease, fenceLease, holdLease, releaseLease, renewLease } from "./lease.ts";
import { openTestDatabase, testCall, writeMigrations } from "./test/database-fixture.ts";

const database = await openTestDatabase<Record<never, never>>({
  service: "mesh-test",
  migrations: await writeMigrations({}),
});
const log = pino({ level: "silent" });
const ttlMs = 600_000;

/** Lets a lease run out without waiting: the database's clock decides, so its row is moved. */
async function expire(name: string): Promise<void> {
  const admin = new pg.Client({ connectionString: database.adminUrl });
  await admin.connect();
  await admin.query("update mesh_test.leases set expires = clock_timestamp() - interval '1 second' where name = $1", [
    name,
  ]);
  await admin.end();
}

describe("a lease", () => {
  it("goes to one of many contenders", async () => {
    const all = await Promise.all(
      Array.from({ length: 8 }, (_, n) => acquireLease(database, { name: "one", ttlMs, holder: `h${n}` })),
    );
    expect(all.filter((lease) => lease !== undefined)).toHaveLength(1);
  });

  it("falls to the next when its holder has expired, with a larger token, and the old holder can do nothing with it", async () => {
    const first = await acquireLease(database, { name: "expired", ttlMs, holder: "a" });
    if (first === undefined) throw new Error("not acquired");
    expect(await acquireLease(database, { name: "expired", ttlMs, holder: "b" })).toBeUndefined();
    await expire("expired");
    const second = await acquireLease(database, { name: "expired", ttlMs, holder: "b" });
    expect(second?.token).toBe(first.token + 1n);
    expect(await renewLease(database, first, ttlMs)).toBeUndefined();
    await releaseLease(database, first);
    expect(await database.write(testCall("org_a"), (tx) => fenceLease(tx, first))).toBe(false);
    if (second === undefined) throw new Error("not acquired");
    expect(await database.write(testCall("org_a"), (tx) => fenceLease(tx, second))).toBe(true);
    expect(await renewLease(database, second, ttlMs)).toMatchObject({ token: second.token });
  });

  it("is not renewed once expired, even when nobody took it", async () => {
    const lease = await acquireLease(database, { name: "late", ttlMs });
    if (lease === undefined) throw new Error("not acquired");
    await expire("late");
    expect(await renewLease(database, lease, ttlMs)).toBeUndefined();
    expect(await database.system((tx) => fenceLease(tx, lease))).toBe(false);
  });

  it("is free at once when it was given back", async () => {
    const lease = await acquireLease(database, { name: "back", ttlMs, holder: "a" });
    if (lease === undefined) throw new Error("not acquired");
    await releaseLease(database, lease);
    expect((await acquireLease(database, { name: "back", ttlMs, holder: "b" }))?.token).toBe(lease.token + 1n);
  });

  it("cannot be taken while a transaction that fenced on it is open", async () => {
    const lease = await acquireLease(database, { name: "fenced", ttlMs, holder: "a" });
    if (lease === undefined) throw new Error("not acquired");
    await database.write(testCall("org_a"), async (tx) => {
      expect(await fenceLease(tx, lease)).toBe(true);
      const admin = new pg.Client({ connectionString: database.adminUrl });
      await admin.connect();
      await admin.query("set lock_timeout = '50ms'");
      await expect(
        admin.query("update mesh_test.leases set token = token + 1 where name = 'fenced'"),
      ).rejects.toMatchObject({ code: "55P03" });
      await admin.end();
    });
  });

  it("refuses a time that makes no sense", async () => {
    for (const wrong of [0, 99, 600_001, Number.NaN]) {
      await expect(acquireLease(database, { name: "x", ttlMs: wrong })).rejects.toThrow("100 to 600,000");
    }
  });
});

describe("holdLease", () => {
  it("lets one contender work at a time and hands over when the first ends", async () => {
    const stops = [new AbortController(), new AbortController()];
    const events: string[] = [];
    const loops = stops.map((stop, n) =>
      holdLease(database, {
        name: "loop",
        ttlMs: 5_000,
        retryMs: 20,
        holder: `loop ${n}`,
        log,
        signal: stop.signal,
        async run(_lease, signal) {
          events.push(`begin ${n}`);
          await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
          events.push(`end ${n}`);
        },
      }),
    );
    await expect.poll(() => events).toHaveLength(1);
    const first = events[0] === "begin 0" ? 0 : 1;
    stops[first]?.abort();
    await expect.poll(() => events).toEqual([`begin ${first}`, `end ${first}`, `begin ${1 - first}`]);
    stops[1 - first]?.abort();
    await Promise.all(loops);
  });

  it("tells the work when the lease is lost", async () => {
    const stop = new AbortController();
    let lost = false;
    const loop = holdLease(database, {
      name: "stolen",
      ttlMs: 300,
      holder: "victim",
      log,
      signal: stop.signal,
      async run(_lease, signal) {
        await database.system((tx) => sql`update leases set holder = 'thief' where name = 'stolen'`.execute(tx));
        await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
        lost = !stop.signal.aborted;
        stop.abort();
      },
    });
    await loop;
    expect(lost).toBe(true);
  });

  it("tries again after its work failed", async () => {
    const stop = new AbortController();
    let runs = 0;
    await holdLease(database, {
      name: "failing",
      ttlMs: 1_000,
      retryMs: 5,
      log,
      signal: stop.signal,
      async run() {
        if (++runs === 3) stop.abort();
        throw new Error("work failed");
      },
    });
    expect(runs).toBe(3);
  });
});

import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { type Outbox, openOutbox } from "@octomesh/mesh/outbox";
import { openTestDatabase } from "@octomesh/mesh/test/database-fixture";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { sql } from "kysely";
import { pino } from "pino";
import { afterAll, describe, expect, it } from "vitest";
import { type NewRevocation, openRevocationLog, type RevocationLog, type WatchMessage } from "./revocation-log.ts";
import type { IdentitySchema } from "./schema.ts";

const database = await openTestDatabase<IdentitySchema>({
  service: "identity",
  migrations: new URL("./migrations/", import.meta.url),
});
const log = pino({ level: "silent" });
const clock = { now: () => Date.now() };
const leaseMs = 400;
const orgId = newId("org");
const opened: { outbox: Outbox; revocations: RevocationLog }[] = [];

/** A replica of the service: its own outbox and log on the same database. */
async function replica(): Promise<RevocationLog> {
  const outbox = openOutbox(database, { log });
  const revocations = openRevocationLog({ database, outbox, clock, log, leaseMs });
  opened.push({ outbox, revocations });
  await revocations.start();
  return revocations;
}

const first = await replica();

afterAll(async () => {
  for (const { outbox, revocations } of opened) {
    await revocations.stop();
    await outbox.close();
  }
});

function revocationOf(id: string, change: Partial<NewRevocation> = {}): NewRevocation {
  const revokeTime = new Date();
  const forgetTime = new Date(revokeTime.getTime() + 60_000);
  return { subject: Subject.DEVICE, orgId, id, revokeTime, forgetTime, ...change };
}

async function revoke(revocations: RevocationLog, id: string, change: Partial<NewRevocation> = {}): Promise<string> {
  return await database.ingest([orgId], (tx) => revocations.record(tx, revocationOf(id, change)));
}

/** A subscriber as a service is one: applies what it is told, and acknowledges while it is told to. */
function subscribe(revocations: RevocationLog, id: string, options: { acknowledges: boolean; cursor?: string }) {
  const controller = new AbortController();
  const subscriber = { id, peer: "rollout" };
  const applied: string[] = [];
  const messages: WatchMessage[] = [];
  let cursor = options.cursor ?? "";
  const running = (async () => {
    for await (const message of revocations.watch(subscriber, cursor, controller.signal)) {
      messages.push(message);
      applied.push(...message.revocations.map((revocation) => revocation.id));
      cursor = message.cursor;
      if (options.acknowledges) await revocations.acknowledge(subscriber, cursor);
    }
  })();
  return {
    applied,
    messages,
    subscriber,
    cursor: () => cursor,
    caughtUp: () => until(() => messages.some((message) => message.caughtUp)),
    async stop() {
      controller.abort();
      await running;
    },
  };
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setImmediate(resolve));
}

describe("WatchRevocations", () => {
  it("sends what still matters first, then what happens, then beats", async () => {
    const [before, forgotten, after] = [newId("dev"), newId("dev"), newId("dev")];
    await revoke(first, before);
    await revoke(first, forgotten, { forgetTime: new Date(Date.now() - 1) });
    const watcher = subscribe(first, "watcher", { acknowledges: true });
    await watcher.caughtUp();
    expect(watcher.applied).toContain(before);
    expect(watcher.applied).not.toContain(forgotten);
    await revoke(first, after);
    await until(() => watcher.applied.includes(after));
    const count = watcher.messages.length;
    await until(() => watcher.messages.length > count);
    expect(watcher.messages.at(-1)).toEqual({ cursor: watcher.cursor(), revocations: [], caughtUp: true });
    await watcher.stop();
    await first.leave(watcher.subscriber);
  });

  it("resumes after a cursor with exactly what was missed", async () => {
    const watcher = subscribe(first, "resumer", { acknowledges: true });
    await watcher.caughtUp();
    const seen = newId("dev");
    await revoke(first, seen);
    await until(() => watcher.applied.includes(seen));
    await watcher.stop();
    const missed = [newId("dev"), newId("dev"), newId("dev")];
    for (const id of missed) await revoke(first, id);
    const again = subscribe(first, "resumer", { acknowledges: true, cursor: watcher.cursor() });
    await until(() => again.applied.length >= missed.length);
    expect(again.applied).toEqual(missed);
    await again.stop();
    await first.leave(again.subscriber);
  });

  it("begins anew for a cursor that is too old, or no cursor of this database", async () => {
    const id = newId("dev");
    await revoke(first, id);
    for (const cursor of ["nonsense", "18446744073709551615.1"]) {
      const watcher = subscribe(first, "stranger", { acknowledges: false, cursor });
      await watcher.caughtUp();
      expect(watcher.applied).toContain(id);
      await watcher.stop();
      await first.leave(watcher.subscriber);
    }
  });

  it("sends revocations that were recorded while the snapshot was read", async () => {
    const ids = Array.from({ length: 200 }, () => newId("dev"));
    const recording = Promise.all(ids.map((id) => revoke(first, id)));
    const watcher = subscribe(first, "racer", { acknowledges: true });
    await recording;
    await until(() => ids.every((id) => watcher.applied.includes(id)));
    await watcher.stop();
    await first.leave(watcher.subscriber);
  });
});

describe("settle", () => {
  it("waits for every live subscriber, on whichever replica it watches and acknowledges", async () => {
    const second = await replica();
    const watchers = [
      subscribe(first, "here", { acknowledges: true }),
      subscribe(second, "there", { acknowledges: true }),
    ];
    await Promise.all(watchers.map((watcher) => watcher.caughtUp()));
    for (let i = 0; i < 10; i += 1) {
      const id = newId("dev");
      await first.settle(await revoke(first, id));
      for (const watcher of watchers) expect(watcher.applied).toContain(id);
    }
    for (const watcher of watchers) {
      await watcher.stop();
      await first.leave(watcher.subscriber);
    }
  });

  it("waits for a subscriber that has gone silent until its lease has run out, and no longer", async () => {
    const watcher = subscribe(first, "silent", { acknowledges: false });
    await watcher.caughtUp();
    await first.acknowledge(watcher.subscriber, watcher.cursor());
    await first.settle(await revoke(first, newId("dev")));
    const rows = await database.system((tx) =>
      tx
        .selectFrom("revocation_subscribers")
        .select(sql<boolean>`lease_expire_time <= clock_timestamp()`.as("lapsed"))
        .where("id", "=", "silent")
        .execute(),
    );
    expect(rows).toEqual([{ lapsed: true }]);
    await watcher.stop();
  });

  it("does not wait for one that has left, and does for one that only began to watch", async () => {
    const watcher = subscribe(first, "guest", { acknowledges: false });
    await watcher.caughtUp();
    const recorded = await revoke(first, newId("dev"));
    let settled = false;
    const waiting = first.settle(recorded).then(() => {
      settled = true;
    });
    await until(() => watcher.applied.length > 0);
    expect(settled).toBe(false);
    await first.leave(watcher.subscriber);
    await waiting;
    await watcher.stop();
  });

  it("says so when a subscriber lives and does not apply", async () => {
    const stuck = { id: "stuck", peer: "rollout" };
    await first.acknowledge(stuck, "1.0");
    await database.system((tx) =>
      tx
        .updateTable("revocation_subscribers")
        .set({ lease_expire_time: sql`clock_timestamp() + interval '1 hour'` })
        .where("id", "=", stuck.id)
        .execute(),
    );
    const error = await first.settle(await revoke(first, newId("dev"))).catch((thrown: unknown) => thrown);
    expect(reasonOf(error)).toBe(Reason.DEADLINE_EXCEEDED);
    await first.leave(stuck);
  });

  it("lets no service speak for another's subscriber", async () => {
    const subscriber = { id: "mine", peer: "rollout" };
    await first.acknowledge(subscriber, "1.0");
    await first.acknowledge({ id: "mine", peer: "verdict" }, "99999999999.0");
    await first.leave({ id: "mine", peer: "verdict" });
    const rows = await database.system((tx) =>
      tx.selectFrom("revocation_subscribers").select(["peer", "cursor"]).where("id", "=", "mine").execute(),
    );
    expect(rows).toEqual([{ peer: "rollout", cursor: "1.0" }]);
    await first.leave(subscriber);
  });

  it("refuses an acknowledgement that is no cursor", async () => {
    const error = await first.acknowledge({ id: "odd", peer: "rollout" }, "x").catch((thrown: unknown) => thrown);
    expect(reasonOf(error)).toBe(Reason.REQUEST_MALFORMED);
  });
});

describe("record", () => {
  it("keeps the latest time of a subject, and nothing of a transaction that rolls back", async () => {
    const [id, undone] = [newId("dev"), newId("dev")];
    const late = new Date(Date.now() + 5_000);
    await revoke(first, id, { revokeTime: late });
    await revoke(first, id);
    await database
      .ingest([orgId], async (tx) => {
        await first.record(tx, revocationOf(undone));
        throw new Error("undone");
      })
      .catch(() => undefined);
    const rows = await database.system((tx) =>
      tx.selectFrom("revocations").select(["id", "revoke_time"]).where("id", "in", [id, undone]).execute(),
    );
    expect(rows).toEqual([{ id, revoke_time: late }]);
  });
});

import { Code, ConnectError } from "@connectrpc/connect";
import { sql } from "kysely";
import pg from "pg";
import pino from "pino";
import { describe, expect, it } from "vitest";
import { afterCommit, mapDatabaseError, openDatabase } from "./database.ts";
import { Reason, reasonOf } from "./errors.ts";
import { openTestDatabase, testCall, writeMigrations } from "./test/database-fixture.ts";

interface Tables {
  notes: { org_id: string; id: string; body: string; size: bigint };
  digests: { digest: string; org_id: string };
  hidden: { org_id: string; id: string };
}

const migrations = await writeMigrations({
  "001_notes.sql": `
    create table notes (org_id text not null, id text not null, body text not null, size bigint not null default 0,
      primary key (org_id, id));
    select mesh.tenant_table('notes');`,
  "002_digests.sql": `
    create table digests (digest text primary key, org_id text not null);
    select mesh.system_access('digests', 'select, insert, update (org_id)');
    create table hidden (org_id text not null, id text not null, primary key (org_id, id));
    select mesh.tenant_table('hidden');
    select mesh.system_access('hidden', 'select');`,
});
const database = await openTestDatabase<Tables>({ service: "mesh-test", migrations });

const orgA = "org_a";
const orgB = "org_b";

async function asAdmin<Row extends pg.QueryResultRow>(text: string, values: unknown[] = []): Promise<Row[]> {
  const client = new pg.Client({ connectionString: database.adminUrl });
  await client.connect();
  try {
    return (await client.query<Row>(text, values)).rows;
  } finally {
    await client.end();
  }
}

async function addNote(orgId: string, id: string): Promise<void> {
  await database.write(testCall(orgId), (tx) =>
    tx
      .insertInto("notes")
      .values({ org_id: orgId, id, body: id, size: 2n ** 60n })
      .execute(),
  );
}

describe("tenant isolation", () => {
  it("shows the app role only its organisation's rows when a statement forgets its filter", async () => {
    await addNote(orgA, "isolation-a");
    await addNote(orgB, "isolation-b");
    const seen = await database.read(orgA, (tx) => tx.selectFrom("notes").select(["org_id"]).distinct().execute());
    expect(seen).toEqual([{ org_id: orgA }]);
    const changed = await database.write(testCall(orgA), (tx) =>
      tx.updateTable("notes").set({ body: "changed" }).executeTakeFirstOrThrow(),
    );
    expect(changed.numUpdatedRows).toBe(1n);
    const other = await database.read(orgB, (tx) => tx.selectFrom("notes").select("body").execute());
    expect(other).toEqual([{ body: "isolation-b" }]);
    await database.write(testCall(orgA), (tx) => tx.deleteFrom("notes").execute());
    expect(await database.read(orgB, (tx) => tx.selectFrom("notes").select("id").execute())).toHaveLength(1);
  });

  it("refuses to write another organisation's row", async () => {
    const write = database.write(testCall(orgA), (tx) =>
      tx.insertInto("notes").values({ org_id: orgB, id: "foreign", body: "", size: 0n }).execute(),
    );
    await expect(write).rejects.toMatchObject({ code: "42501" });
    const move = database.write(testCall(orgB), (tx) => tx.updateTable("notes").set({ org_id: orgA }).execute());
    await expect(move).rejects.toMatchObject({ code: "42501" });
  });

  it("shows nothing to the app role while no organisation is set, before and after a transaction that set one", async () => {
    const client = new pg.Client({ connectionString: database.url });
    await client.connect();
    try {
      await client.query("begin; set local role mesh_test_app; set local app.org_id = 'org_b'; commit");
      for (const role of ["mesh_test_app", "mesh_test_ingest"]) {
        await client.query(`begin; set local role ${role}`);
        expect((await client.query("select * from notes")).rows).toEqual([]);
        await expect(client.query("insert into notes values ('', 'x', '')")).rejects.toMatchObject({ code: "42501" });
        await client.query("rollback");
      }
    } finally {
      await client.end();
    }
  });

  it("gives the login role itself nothing: neither tables nor the owner's role", async () => {
    const client = new pg.Client({ connectionString: database.url });
    await client.connect();
    try {
      await expect(client.query("select * from notes")).rejects.toMatchObject({ code: "42501" });
      await expect(client.query("select * from outbox")).rejects.toMatchObject({ code: "42501" });
      await expect(client.query("set role mesh_test_migrator")).rejects.toMatchObject({ code: "42501" });
      await expect(client.query("create table public.mine ()")).rejects.toMatchObject({ code: "42501" });
    } finally {
      await client.end();
    }
  });

  it("refuses an organisation id that is none, so that it cannot end the statement it stands in", async () => {
    for (const orgId of ["", "a", "org_", "org_a'; set role mesh_test_system; --", "org_a,org_b", "org_A"]) {
      await expect(database.read(orgId, async () => 1)).rejects.toThrow("needs the organisation");
      await expect(database.ingest([orgA, orgId], async () => 1)).rejects.toThrow("invalid organisation");
    }
    await expect(database.ingest([], async () => 1)).rejects.toThrow("1 to 4096");
  });

  it("lets a batch write over the organisations it names and no other", async () => {
    await database.ingest([orgA, orgB], (tx) =>
      tx
        .insertInto("notes")
        .values([orgA, orgB].map((org_id) => ({ org_id, id: "batch", body: "", size: 0n })))
        .execute(),
    );
    const seen = await database.ingest([orgA, orgB], (tx) =>
      tx.selectFrom("notes").select("org_id").where("id", "=", "batch").orderBy("org_id").execute(),
    );
    expect(seen).toEqual([{ org_id: orgA }, { org_id: orgB }]);
    const outside = database.ingest([orgA], (tx) =>
      tx.insertInto("notes").values({ org_id: orgB, id: "outside", body: "", size: 0n }).execute(),
    );
    await expect(outside).rejects.toMatchObject({ code: "42501" });
  });

  it("keeps the system role out of tenant tables, but for the privileges a migration gave it", async () => {
    await expect(database.system((tx) => tx.selectFrom("notes").selectAll().execute())).rejects.toMatchObject({
      code: "42501",
    });
    await database.write(testCall(orgA), (tx) => tx.insertInto("hidden").values({ org_id: orgA, id: "h" }).execute());
    expect(await database.system((tx) => tx.selectFrom("hidden").select("id").execute())).toEqual([{ id: "h" }]);
    await expect(database.system((tx) => tx.deleteFrom("hidden").execute())).rejects.toMatchObject({ code: "42501" });
    await database.system(async (tx) => {
      await tx.insertInto("digests").values({ digest: "d", org_id: orgA }).execute();
      await tx.updateTable("digests").set({ org_id: orgB }).execute();
    });
    await expect(
      database.system((tx) => tx.updateTable("digests").set({ digest: "e" }).execute()),
    ).rejects.toMatchObject({ code: "42501" });
    await expect(database.read(orgA, (tx) => tx.selectFrom("digests").selectAll().execute())).rejects.toMatchObject({
      code: "42501",
    });
  });

  it("refuses to start as a role that row-level security does not bind", async () => {
    const open = openDatabase({
      service: "mesh-test",
      url: database.adminUrl,
      migrations,
      log: pino({ level: "silent" }),
    });
    await expect(open).rejects.toThrow("is a superuser, bypasses row-level security or owns tables");
    const owner = openDatabase({
      service: "mesh-test",
      url: database.migrationUrl,
      migrations,
      log: pino({ level: "silent" }),
    });
    await expect(owner).rejects.toThrow("DATABASE_URL: the login role lacks mesh_test_app");
  });
});

describe("read", () => {
  it("cannot write", async () => {
    await expect(database.read(orgA, (tx) => tx.deleteFrom("notes").execute())).rejects.toMatchObject({
      code: "25006",
    });
  });

  it("answers bigint columns and counts as bigints", async () => {
    await addNote(orgA, "big");
    const [row] = await database.read(orgA, (tx) =>
      tx
        .selectFrom("notes")
        .select(["size", sql<bigint>`count(*) over ()`.as("n")])
        .where("id", "=", "big")
        .execute(),
    );
    expect(row).toEqual({ size: 2n ** 60n, n: 1n });
  });
});

describe("write", () => {
  it("refuses a change without an audit draft before it runs anything", async () => {
    let ran = false;
    const { audit: _, ...bare } = testCall(orgA);
    const run = async () => {
      ran = true;
    };
    await expect(database.write(bare, run)).rejects.toThrow("audit draft");
    await expect(database.systemWrite(bare, run)).rejects.toThrow("audit draft");
    expect(ran).toBe(false);
    await database.write({ ...bare, auditExempt: true }, run);
    expect(ran).toBe(true);
  });

  it("writes the event with the change, once per draft, and marks it written after the commit", async () => {
    const call = testCall(orgA, "notes.create");
    const audit = call.audit;
    if (audit === undefined) throw new Error("unreachable");
    await database.write(call, async (tx) => {
      audit.resource("note", "n1", "it's \\ a \u0000 \ud800 name");
      audit.note("why", "'; drop table notes; -- \u0000");
      await tx.insertInto("notes").values({ org_id: orgA, id: "audited", body: "", size: 0n }).execute();
      expect(audit.state).toBe("pending");
    });
    expect(audit.state).toBe("written");
    await database.write(call, (tx) => tx.deleteFrom("notes").where("id", "=", "audited").execute());
    const rows = await asAdmin("select * from mesh_test.audit_outbox where id = $1", [audit.id]);
    expect(rows).toMatchObject([
      {
        org_id: orgA,
        action: "notes.create",
        outcome: "success",
        actor_kind: "api_key",
        actor_id: "key_test",
        resource_type: "note",
        resource_id: "n1",
        resource_name: "it's \\ a \uFFFD \uFFFD name",
        request_id: call.requestId,
        address: "192.0.2.1",
        metadata: { why: "'; drop table notes; -- \uFFFD" },
        time: new Date(audit.time),
      },
    ]);
  });

  it("writes neither change nor event when it fails, and leaves the draft for a second try", async () => {
    const call = testCall(orgA);
    const failed = database.write(call, async (tx) => {
      await tx.insertInto("notes").values({ org_id: orgA, id: "failed", body: "", size: 0n }).execute();
      throw new ConnectError("no", Code.FailedPrecondition);
    });
    await expect(failed).rejects.toMatchObject({ code: Code.FailedPrecondition });
    expect(call.audit?.state).toBe("pending");
    expect(await asAdmin("select from mesh_test.audit_outbox where id = $1", [call.audit?.id])).toEqual([]);
    expect(await asAdmin("select from mesh_test.notes where id = 'failed'")).toEqual([]);
  });

  it("writes one event when two transactions share a draft at the same time", async () => {
    const call = testCall(orgA);
    await Promise.all([1, 2, 3].map(() => database.write(call, async () => {})));
    expect(await asAdmin("select from mesh_test.audit_outbox where id = $1", [call.audit?.id])).toHaveLength(1);
  });

  it("writes no event for a skipped draft", async () => {
    const call = testCall(orgA);
    call.audit?.skip("replay");
    await database.write(call, async () => {});
    expect(await asAdmin("select from mesh_test.audit_outbox where id = $1", [call.audit?.id])).toEqual([]);
  });

  it("does not pretend to have committed when a failed statement was swallowed", async () => {
    const call = testCall(orgA);
    const write = database.write(call, async (tx) => {
      await sql`select 1/0`.execute(tx).catch(() => {});
    });
    await expect(write).rejects.toThrow();
    expect(call.audit?.state).toBe("pending");
    const exempt = database.write({ ...testCall(orgA), audit: undefined, auditExempt: true }, async (tx) => {
      await sql`select 1/0`.execute(tx).catch(() => {});
    });
    await expect(exempt).rejects.toThrow("nothing was committed");
  });

  it("rolls back when the caller has gone", async () => {
    const gone = new AbortController();
    const call = { ...testCall(orgA), signal: gone.signal };
    const write = database.write(call, async (tx) => {
      await tx.insertInto("notes").values({ org_id: orgA, id: "gone", body: "", size: 0n }).execute();
      gone.abort(new ConnectError("gone", Code.Canceled));
    });
    await expect(write).rejects.toMatchObject({ code: Code.Canceled });
    expect(await asAdmin("select from mesh_test.notes where id = 'gone'")).toEqual([]);
  });

  it("runs work after the commit, and not after a rollback", async () => {
    const done: string[] = [];
    await database.write(testCall(orgA), async (tx) => afterCommit(tx, () => done.push("committed")));
    const failed = database.write(testCall(orgA), async (tx) => {
      afterCommit(tx, () => done.push("rolled back"));
      throw new Error("no");
    });
    await expect(failed).rejects.toThrow("no");
    expect(done).toEqual(["committed"]);
  });

  it("refuses statements of a transaction that has ended", async () => {
    let leaked: (() => Promise<unknown>) | undefined;
    await database.read(orgA, async (tx) => {
      leaked = () => tx.selectFrom("notes").selectAll().execute();
    });
    await expect(leaked?.()).rejects.toThrow("the transaction has ended");
  });

  it("repeats a transaction that lost to another, and gives up after a bounded number of tries", async () => {
    await database.write(testCall(orgB), (tx) =>
      tx.insertInto("notes").values({ org_id: orgB, id: "counter", body: "", size: 0n }).execute(),
    );
    let runs = 0;
    const increment = () =>
      database.write(
        testCall(orgB),
        async (tx) => {
          runs++;
          const { size } = await tx
            .selectFrom("notes")
            .select("size")
            .where("id", "=", "counter")
            .executeTakeFirstOrThrow();
          await tx
            .updateTable("notes")
            .set({ size: size + 1n })
            .where("id", "=", "counter")
            .execute();
        },
        { isolation: "serializable" },
      );
    await Promise.all([increment(), increment(), increment()]);
    const [row] = await asAdmin<{ size: string }>("select size from mesh_test.notes where id = 'counter'");
    expect(row?.size).toBe("3");
    expect(runs).toBeGreaterThanOrEqual(3);

    let tries = 0;
    const hopeless = database.write(testCall(orgA), async () => {
      tries++;
      throw Object.assign(new Error("again"), { code: "40001" });
    });
    await expect(hopeless).rejects.toSatisfy((error) => reasonOf(error) === Reason.TRANSACTION_CONFLICT);
    expect(tries).toBe(5);
  });
});

describe("a database in trouble", () => {
  it("is UNAVAILABLE when no connection is free in time, and works again afterwards", async () => {
    const small = await database.reopen({ poolSize: 1, connectTimeoutMs: 100 });
    let release: () => void = () => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const first = small.read(orgA, () => held);
    await expect(small.read(orgA, async () => 1)).rejects.toMatchObject({ code: Code.Unavailable });
    release();
    await first;
    expect(await small.read(orgA, async () => 1)).toBe(1);
  });

  it("is UNAVAILABLE when the connection is cut in the middle, and the pool recovers", async () => {
    const cut = database.read(orgA, async (tx) => {
      const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(tx);
      await asAdmin("select pg_terminate_backend($1)", [rows[0]?.pid]);
      await sql`select 1`.execute(tx);
    });
    await expect(cut).rejects.toMatchObject({ code: Code.Unavailable });
    expect(await database.read(orgA, async () => 1)).toBe(1);
  });

  it("cancels a statement that takes too long", async () => {
    const slow = database.read(orgA, (tx) => sql`select pg_sleep(20)`.execute(tx), { statementTimeoutMs: 30 });
    await expect(slow).rejects.toMatchObject({ code: Code.DeadlineExceeded });
  });

  it("fails at start with the variable's name and without the password when nobody listens", async () => {
    const url = "postgres://mesh_test:hunter2@127.0.0.1:1/octomesh";
    const open = openDatabase({
      service: "mesh-test",
      url,
      urlVariable: "OCTOMESH_DATABASE_URL",
      migrations,
      startWaitMs: 0,
      log: pino({ level: "silent" }),
    });
    const error = await open.catch((reason: unknown) => reason);
    expect(String(error)).toContain("OCTOMESH_DATABASE_URL (127.0.0.1:1/octomesh): cannot connect to PostgreSQL");
    expect(String(error)).not.toContain("hunter2");
  });

  it("refuses work once closed", async () => {
    const other = await database.reopen();
    await other.close();
    await expect(other.read(orgA, async () => 1)).rejects.toMatchObject({ code: Code.Unavailable });
  });

  it("says what happened in the mesh's reasons, and leaves the store's own errors to the store", () => {
    const of = (code: string) => reasonOf(mapDatabaseError(Object.assign(new Error("x"), { code })));
    expect(of("22021")).toBe(Reason.VALIDATION_FAILED);
    expect(["ECONNREFUSED", "53300", "57P01", "08006", "57P03"].map(of)).toEqual(
      Array(5).fill(Reason.DEPENDENCY_UNAVAILABLE),
    );
    expect(of("53100")).toBe(Reason.STORAGE_FULL);
    const unique = Object.assign(new Error("duplicate"), { code: "23505" });
    expect(mapDatabaseError(unique)).toBe(unique);
  });
});

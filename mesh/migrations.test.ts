import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import pg from "pg";
import pino from "pino";
import { beforeEach, describe, expect, it } from "vitest";
import { openDatabase } from "./database.ts";
import { migrate, readMigrations } from "./migrations.ts";
import { openTestDatabase, writeMigrations } from "./test/database-fixture.ts";

const service = "mesh-test";
const log = pino({ level: "silent" });
const database = await openTestDatabase({ service, migrations: await writeMigrations({}) });
const folder = await writeMigrations({});
const tenant = (name: string) =>
  `create table ${name} (org_id text not null, id text not null, primary key (org_id, id));`;

async function put(files: Record<string, string>): Promise<void> {
  for (const [name, sql] of Object.entries(files)) await writeFile(join(folder, name), sql);
}

const run = () =>
  migrate({ service, url: database.migrationUrl, urlVariable: "MIGRATION_URL", migrations: folder, log });

async function asAdmin<Row extends pg.QueryResultRow>(text: string): Promise<Row[]> {
  const client = new pg.Client({ connectionString: database.adminUrl });
  await client.connect();
  try {
    return (await client.query<Row>(text)).rows;
  } finally {
    await client.end();
  }
}

beforeEach(async () => {
  for (const { name } of await readMigrations(folder).catch(() => [])) await rm(join(folder, name));
  await asAdmin("delete from mesh_test.migrations where source = 'service'");
  await asAdmin("drop table if exists mesh_test.a, mesh_test.b cascade");
});

describe("migrate", () => {
  it("applies each file once, in order, and leaves no helper behind", async () => {
    await put({ "001_a.sql": `${tenant("a")} select mesh.tenant_table('a');`, "002_b.sql": tenant("b") });
    expect(await run()).toBe(2);
    expect(await run()).toBe(0);
    expect(await asAdmin("select from pg_namespace where nspname = 'mesh'")).toEqual([]);
    expect(
      await asAdmin("select number, name from mesh_test.migrations where source = 'service' order by number"),
    ).toEqual([
      { number: 1, name: "001_a.sql" },
      { number: 2, name: "002_b.sql" },
    ]);
  });

  it("lets concurrent starts wait for each other", async () => {
    await put({ "001_a.sql": tenant("a") });
    expect((await Promise.all([run(), run(), run()])).sort()).toEqual([0, 0, 1]);
  });

  it("names a file that was changed after it was applied", async () => {
    await put({ "001_a.sql": tenant("a") });
    await run();
    await put({ "001_a.sql": `${tenant("a")} -- harmless` });
    await expect(run()).rejects.toThrow("migration 001_a.sql was changed after it was applied");
    await put({ "001_a.sql": tenant("a").replaceAll("\n", "\r\n") });
    expect(await run()).toBe(0);
  });

  it("rolls a failing file back whole, names it, and keeps those before it", async () => {
    await put({ "001_a.sql": tenant("a"), "002_b.sql": `${tenant("b")} select 1/0;` });
    await expect(run()).rejects.toThrow(
      "migration 002_b.sql of mesh_test failed and was rolled back: division by zero",
    );
    expect(
      await asAdmin("select to_regclass('mesh_test.a') is not null as a, to_regclass('mesh_test.b') as b"),
    ).toEqual([{ a: true, b: null }]);
  });

  it("refuses a file that ends its own transaction", async () => {
    await put({ "001_a.sql": "select 1; commit; begin;" });
    await expect(run()).rejects.toThrow("ends its own transaction");
    expect(await asAdmin("select from mesh_test.migrations where source = 'service'")).toEqual([]);
    // What the file committed of the helpers is the proof that it did; take it away for the next tests.
    await asAdmin("drop schema if exists mesh cascade");
  });

  it("refuses a table that is granted to the app without row-level security", async () => {
    await put({ "001_a.sql": `${tenant("a")} grant select on a to mesh_test_app;` });
    await expect(run()).rejects.toThrow("a: granted to mesh_test_app or mesh_test_ingest without row-level security");
  });

  it("refuses a tenant table whose key does not begin with the organisation", async () => {
    for (const key of ["primary key (id, org_id)", "unique (org_id, id)"]) {
      await put({
        "001_a.sql": `create table a (org_id text not null, id text not null, ${key}); select mesh.tenant_table('a');`,
      });
      await expect(run()).rejects.toThrow("its primary key must begin with org_id text");
    }
  });

  it("refuses privileges that are no list of privileges", async () => {
    for (const privileges of ["all", "select on a to public; grant select", "truncate", ""]) {
      await put({ "001_a.sql": `${tenant("a")} select mesh.system_access('a', '${privileges}');` });
      await expect(run()).rejects.toThrow("system_access on");
    }
  });

  it("runs beside a newer version's schema", async () => {
    await put({ "001_a.sql": tenant("a"), "002_b.sql": tenant("b") });
    await run();
    await rm(join(folder, "002_b.sql"));
    expect(await run()).toBe(0);
  });

  it("refuses a role that does not own the schema, naming the variable", async () => {
    const wrong = migrate({ service, url: database.url, urlVariable: "MIGRATION_URL", migrations: folder, log });
    await expect(wrong).rejects.toThrow("MIGRATION_URL: this role does not own the schema mesh_test");
  });
});

describe("readMigrations", () => {
  it("refuses names that do not fit, gaps and doubles", async () => {
    for (const files of [
      ["1_a.sql"],
      ["001_a.sql", "003_c.sql"],
      ["001_a.sql", "001_b.sql"],
      ["notes.txt"],
      ["002_a.sql"],
    ]) {
      const wrong = await writeMigrations(Object.fromEntries(files.map((name) => [name, ""])));
      await expect(readMigrations(wrong)).rejects.toThrow(/a migration is named like|expected number/);
    }
  });
});

describe("openDatabase without a migration URL", () => {
  it("names what is missing", async () => {
    await put({ "001_a.sql": tenant("a") });
    const open = openDatabase({ service, url: database.url, migrations: folder, log });
    await expect(open).rejects.toThrow(
      "migration 001_a.sql of mesh_test is not applied: start once with MIGRATION_URL",
    );
    await run();
    await (await openDatabase({ service, url: database.url, migrations: folder, log })).close();
  });
});

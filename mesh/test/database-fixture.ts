import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import pg from "pg";
import pino from "pino";
import { afterAll, expect, inject, onTestFinished } from "vitest";
import { type Call, createAuditDraft } from "../call.ts";
import { type Database, type DatabaseOptions, openDatabase } from "../database.ts";
import { migrate } from "../migrations.ts";
import { ensureServiceRoles, serviceRoles } from "../service-roles.ts";
import type { BrokerAnswer } from "./global-setup.ts";

/** A database of one test file, and the ways into it that a test may need. */
export interface TestDatabase<DB> extends Database<DB> {
  /** URL of the service's login role. */
  readonly url: string;
  readonly migrationUrl: string;
  /** URL of the superuser, in the same database: for looking behind row-level security. */
  readonly adminUrl: string;
  /** Opens the same database again, as another replica would; closed with the first. */
  reopen(options?: Partial<DatabaseOptions>): Promise<Database<DB>>;
}

const runtimeFiles = [new URL("../migrations/", import.meta.url), new URL("../migration-helpers.sql", import.meta.url)];

/**
 * Opens a database of its own for this test file: a copy of a template that is migrated once per run and set of
 * migrations. Call it at the top level of the file (`const database = await openTestDatabase<DB>({ … })`) or in a test;
 * it closes itself when the file or the test ends, and the server goes with the run. In a hook, close it yourself.
 */
export async function openTestDatabase<DB>(options: {
  service: string;
  migrations: URL | string;
  /** For the pool and its timeouts, where a test is about them. */
  database?: Partial<DatabaseOptions>;
}): Promise<TestDatabase<DB>> {
  const { service, migrations } = options;
  const log = pino({ level: "silent" });
  const answer = await fetch(`${inject("postgresBroker")}?service=${service}`);
  if (!answer.ok) throw new Error(`no test database: ${await answer.text()}`);
  const { adminUrl, passwords } = (await answer.json()) as BrokerAnswer;
  const roles = serviceRoles(service);
  const urlOf = (database: string, user?: string, password?: string) => {
    const url = new URL(adminUrl);
    url.pathname = `/${database}`;
    if (user !== undefined) url.username = user;
    if (password !== undefined) url.password = password;
    return url.href;
  };

  const template = `template_${roles.login}_${(await digestOf(migrations)).slice(0, 16)}`;
  const name = `test_${randomBytes(8).toString("hex")}`;
  const admin = new pg.Client({ connectionString: adminUrl });
  await admin.connect();
  try {
    // One lock for all templates: roles belong to the cluster, and PostgreSQL copies no database that is in use.
    await admin.query("select pg_advisory_lock(77)");
    const { rows } = await admin.query("select from pg_database where datname = $1 and datistemplate", [template]);
    if (rows.length === 0) {
      await admin.query(`drop database if exists ${template}`);
      await admin.query(`create database ${template}`);
      await ensureServiceRoles(urlOf(template), service, passwords);
      const url = urlOf(template, roles.migrator, passwords.migrator);
      await migrate({ service, url, urlVariable: "template", migrations, log });
      await admin.query(`alter database ${template} with is_template true allow_connections false`);
    }
    await admin.query(`create database ${name} template ${template}`);
    // A copy does not inherit what was granted on the database itself.
    await admin.query(`grant create on database ${name} to ${roles.migrator}`);
  } finally {
    await admin.end();
  }

  const url = urlOf(name, roles.login, passwords.login);
  const open = (more: Partial<DatabaseOptions> = {}) =>
    openDatabase<DB>({ service, url, migrations, log, ...options.database, ...more });
  const opened = [await open()];
  const [first] = opened;
  if (first === undefined) throw new Error("unreachable");
  let closing: Promise<void> | undefined;

  async function close(): Promise<void> {
    await Promise.all(opened.map((database) => database.close()));
    const last = new pg.Client({ connectionString: adminUrl });
    await last.connect();
    await last.query(`drop database if exists ${name} with (force)`);
    await last.end();
  }

  const database: TestDatabase<DB> = {
    ...first,
    url,
    migrationUrl: urlOf(name, roles.migrator, passwords.migrator),
    adminUrl: urlOf(name),
    async reopen(more) {
      const again = await open(more);
      opened.push(again);
      return again;
    },
    close() {
      closing ??= close();
      return closing;
    },
  };
  atEnd(() => database.close());
  return database;
}

/** A call as the policy would make it, for tests of stores: organisation and action, everything else plausible. */
export function testCall(orgId: string, action = "tests.change"): Call {
  const { signal } = new AbortController();
  return {
    caller: {
      kind: "api_key",
      orgId,
      id: "key_test",
      credentialId: "key_test",
      address: "192.0.2.1",
      scopes: new Set(),
      role: 0,
      plan: 0,
      issuedMs: 0,
      sandbox: false,
    },
    orgId,
    requestId: randomBytes(8).toString("hex"),
    audit: createAuditDraft({ action }),
    signal,
    waitSignal: () => signal,
    log: pino({ level: "silent" }),
  };
}

/** Writes a folder of migrations for a test and answers its path; removed when the file, or the test, ends. */
export async function writeMigrations(files: Record<string, string>): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "octomesh-test-migrations-"));
  for (const [name, sql] of Object.entries(files)) await writeFile(join(folder, name), sql);
  atEnd(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** Cleans up after the running test, or after the file when none runs yet. */
function atEnd(clean: () => Promise<void>): void {
  if (expect.getState().currentTestName === undefined) afterAll(clean);
  else onTestFinished(clean);
}

async function digestOf(migrations: URL | string): Promise<string> {
  const hash = createHash("sha256");
  for (const place of [...runtimeFiles, migrations]) {
    const path = place instanceof URL ? fileURLToPath(place) : place;
    const names = path.endsWith(".sql") ? [""] : (await readdir(path)).sort();
    for (const name of names)
      hash
        .update(`${name}\0`)
        .update(await readFile(join(path, name)))
        .update("\0");
  }
  return hash.digest("hex");
}

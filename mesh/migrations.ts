/**
 * Migrations: numbered SQL files, forward only.
 *
 * A service keeps them in `services/<name>/migrations/`, named `001_devices.sql`, `002_groups.sql`, … without gaps.
 * Each runs once, in its own transaction, as the service's migrator, with the service's schema as the search path,
 * under an advisory lock, and is recorded with its SHA-256 in the table `migrations`. A file that was applied must
 * never change again. Files hold no BEGIN or COMMIT, and nothing that cannot run in a transaction.
 *
 * Version N-1 of a service runs beside N during an update, so a migration only expands (new tables, nullable columns,
 * columns with defaults); what it replaced goes in a later release.
 *
 * The runtime installs its own tables first (`mesh/migrations/`): outbox, outbox_trimmed, audit_outbox, leases,
 * idempotency. While a migration runs it may call
 *
 * - `select mesh.tenant_table('devices')`: row-level security and grants for a table whose primary key begins with
 *   `org_id text`: the app role sees one organisation, the ingest role those of its batch, both deny when unset;
 * - `select mesh.system_access('devices', 'select, update (last_used)')`: lets the system role touch a table, tenant
 *   or not, by exactly these privileges.
 *
 * A table of a service gives nobody but its owner any access until one of the two, or a plain `grant … to
 * <schema>_app`, says so. A grant to the app or ingest role on a table that has an `org_id` column without forced
 * row-level security fails the migration.
 *
 *     -- 001_devices.sql
 *     create table devices (
 *       org_id text not null,
 *       id text not null,
 *       identifier text not null check (length(identifier) between 1 and 200),
 *       create_time timestamptz not null default now(),
 *       primary key (org_id, id),
 *       unique (org_id, identifier)
 *     );
 *     select mesh.tenant_table('devices');
 *     select mesh.system_access('devices', 'select');
 */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import pg from "pg";
import type { Logger } from "pino";
import { sqlStateOf } from "./database-error.ts";
import { databaseTarget } from "./database-url.ts";
import { schemaOf, serviceRoles } from "./service-roles.ts";

/** One migration file. */
export interface Migration {
  readonly number: number;
  /** File name, such as `001_devices.sql`. */
  readonly name: string;
  readonly sql: string;
  /** SHA-256 of the text, line ends normalised to LF. */
  readonly checksum: Buffer;
}

/** What `migrate` needs. */
export interface MigrateOptions {
  service: string;
  /** URL of the service's migrator. */
  url: string;
  /** Name of the variable that `url` came from, for error messages. */
  urlVariable: string;
  /** The folder of the service's migrations. */
  migrations: URL | string;
  log: Logger;
  /** Until when (milliseconds since the epoch) to wait for a database that is not there yet. Default: not at all. */
  startDeadline?: number;
}

const runtimeMigrations = new URL("./migrations/", import.meta.url);
const helpersFile = new URL("./migration-helpers.sql", import.meta.url);

/** Whose file a migration is; both are numbered on their own. */
type Source = "runtime" | "service";

interface Applied {
  source: Source;
  number: number;
  name: string;
  checksum: Buffer;
}

/** Brings a service's schema up to its files. Answers how many were applied. Concurrent starts wait for each other. */
export async function migrate(options: MigrateOptions): Promise<number> {
  const { service, log } = options;
  const schema = schemaOf(service);
  const wanted = await wantedMigrations(options.migrations);
  const client = await connect(options);
  try {
    await client.query("set lock_timeout = '10min'");
    await client.query("select pg_advisory_lock(hashtextextended('octomesh migrations ' || $1, 0))", [schema]);
    await client.query("set lock_timeout = '30s'");
    await assertMigrator(client, service, options.urlVariable);
    await client.query(`
      create table if not exists ${schema}.migrations (
        source text not null,
        number integer not null,
        name text not null,
        checksum bytea not null,
        time timestamptz not null default clock_timestamp(),
        primary key (source, number)
      );
      grant select on ${schema}.migrations to ${serviceRoles(service).login}`);
    const pending = compare(wanted, await readApplied(client, schema), log);
    const helpers = pending.length > 0 ? await readFile(helpersFile, "utf8") : "";
    for (const { source, migration } of pending) {
      await apply(client, { service, schema, source, migration, helpers });
      log.info({ service, migration: migration.name, source }, "migration applied");
    }
    return pending.length;
  } finally {
    await client.end();
  }
}

/**
 * Fails, naming the first missing file, when the schema lags behind the files; for a process that has no migration URL.
 * `client` is a connection of the service's login role.
 */
export async function assertMigrated(
  client: pg.ClientBase,
  options: { service: string; migrations: URL | string; migrationUrlVariable: string; log: Logger },
): Promise<void> {
  const schema = schemaOf(options.service);
  const hint = `start once with ${options.migrationUrlVariable}, the URL of ${serviceRoles(options.service).migrator}`;
  let applied: Applied[];
  try {
    applied = await readApplied(client, schema);
  } catch (error) {
    if (sqlStateOf(error) !== "42P01") throw error;
    throw new Error(`the schema ${schema} is empty: ${hint}`);
  }
  const pending = compare(await wantedMigrations(options.migrations), applied, options.log);
  const first = pending[0];
  if (first !== undefined) throw new Error(`migration ${first.migration.name} of ${schema} is not applied: ${hint}`);
}

/** Reads a folder of migrations, in order. Throws when a name does not fit, or a number is missing or doubled. */
export async function readMigrations(folder: URL | string): Promise<Migration[]> {
  const path = folder instanceof URL ? fileURLToPath(folder) : folder;
  const names = (await readdir(path)).sort();
  return await Promise.all(
    names.map(async (name, index) => {
      const match = /^(\d{3})_[a-z0-9_]+\.sql$/.exec(name);
      if (match === null) throw new Error(`${join(path, name)}: a migration is named like 001_devices.sql`);
      const number = Number(match[1]);
      if (number !== index + 1) {
        throw new Error(`${join(path, name)}: expected number ${String(index + 1).padStart(3, "0")}`);
      }
      const sql = (await readFile(join(path, name), "utf8")).replaceAll("\r\n", "\n");
      return { number, name, sql, checksum: createHash("sha256").update(sql).digest() };
    }),
  );
}

async function wantedMigrations(folder: URL | string): Promise<{ source: Source; migration: Migration }[]> {
  const [runtime, service] = await Promise.all([readMigrations(runtimeMigrations), readMigrations(folder)]);
  return [
    ...runtime.map((migration) => ({ source: "runtime" as const, migration })),
    ...service.map((migration) => ({ source: "service" as const, migration })),
  ];
}

async function readApplied(client: pg.ClientBase, schema: string): Promise<Applied[]> {
  const { rows } = await client.query<Applied>(
    `select source, number, name, checksum from ${schema}.migrations order by source, number`,
  );
  return rows;
}

function compare(
  wanted: { source: Source; migration: Migration }[],
  applied: Applied[],
  log: Logger,
): { source: Source; migration: Migration }[] {
  const left = new Map(applied.map((row) => [`${row.source} ${row.number}`, row]));
  const pending = wanted.filter(({ source, migration }) => {
    const key = `${source} ${migration.number}`;
    const row = left.get(key);
    left.delete(key);
    if (row === undefined) return true;
    if (row.name !== migration.name || !row.checksum.equals(migration.checksum)) {
      throw new Error(
        `migration ${migration.name} was changed after it was applied (as ${row.name}): restore the file and put the change into a new one`,
      );
    }
    return false;
  });
  // Numbers are consecutive in the files, so what is left was applied by a newer version.
  for (const row of left.values()) log.warn({ migration: row.name }, "the schema is newer than this version");
  return pending;
}

async function apply(
  client: pg.Client,
  run: { service: string; schema: string; source: Source; migration: Migration; helpers: string },
): Promise<void> {
  const { schema, source, migration } = run;
  const inSchema = (sql: string) => sql.replaceAll(":schema", schema);
  try {
    await client.query("begin");
    await client.query(`set local search_path = ${schema}; set local client_min_messages = warning`);
    const before = await currentTransaction(client);
    await client.query(inSchema(run.helpers));
    await client.query(source === "runtime" ? inSchema(migration.sql) : migration.sql);
    if ((await currentTransaction(client)) !== before) {
      throw new Error("it ends its own transaction: take BEGIN and COMMIT out");
    }
    await client.query(`set local search_path = ${schema}; set local client_min_messages = warning`);
    await client.query("drop schema mesh cascade");
    await assertTenantTables(client, run.service);
    await client.query("insert into migrations (source, number, name, checksum) values ($1, $2, $3, $4)", [
      source,
      migration.number,
      migration.name,
      migration.checksum,
    ]);
    await client.query("commit");
  } catch (error) {
    await client.query("rollback").catch(() => {});
    const detail = error instanceof Error ? error.message : String(error);
    throw new Error(`migration ${migration.name} of ${schema} failed and was rolled back: ${detail}`, { cause: error });
  }
}

async function currentTransaction(client: pg.Client): Promise<string | undefined> {
  const { rows } = await client.query<{ xid: string }>("select pg_current_xact_id()::text as xid");
  return rows[0]?.xid;
}

async function assertTenantTables(client: pg.Client, service: string): Promise<void> {
  const { app, ingest } = serviceRoles(service);
  const { rows } = await client.query<{ name: string }>(
    `select c.relname as name
     from pg_class c
     join pg_attribute a on a.attrelid = c.oid and a.attname = 'org_id' and not a.attisdropped
     where c.relnamespace = $1::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
       and not (c.relrowsecurity and c.relforcerowsecurity)
       and exists (
         select from unnest(array[$2, $3]) role, unnest(array['select', 'insert', 'update']) privilege
         where has_any_column_privilege(role, c.oid, privilege) or has_table_privilege(role, c.oid, 'delete')
       )`,
    [schemaOf(service), app, ingest],
  );
  if (rows.length > 0) {
    const names = rows.map((row) => row.name).join(", ");
    throw new Error(`${names}: granted to ${app} or ${ingest} without row-level security; call mesh.tenant_table`);
  }
}

async function assertMigrator(client: pg.Client, service: string, variable: string): Promise<void> {
  const schema = schemaOf(service);
  const { rows } = await client.query<{ owns: boolean }>(
    "select nspowner = current_user::regrole as owns from pg_namespace where nspname = $1",
    [schema],
  );
  if (rows[0]?.owns !== true) {
    throw new Error(
      `${variable}: this role does not own the schema ${schema}; expected ${serviceRoles(service).migrator}, made together with the schema before the first start`,
    );
  }
}

async function connect(options: MigrateOptions): Promise<pg.Client> {
  for (;;) {
    const client = new pg.Client({
      connectionString: options.url,
      application_name: `octomesh ${options.service} migrations`,
      connectionTimeoutMillis: 5_000,
      statement_timeout: 600_000,
    });
    client.on("error", () => {});
    try {
      await client.connect();
      return client;
    } catch (error) {
      await client.end().catch(() => {});
      const state = sqlStateOf(error) ?? "";
      // A wrong password or database name does not mend itself.
      if (/^(28|3D)/.test(state) || Date.now() >= (options.startDeadline ?? 0)) {
        const detail = error instanceof Error && error.message !== "" ? error.message : state;
        const target = databaseTarget(options.url, options.urlVariable);
        throw new Error(`${options.urlVariable} (${target}): cannot connect to PostgreSQL: ${detail}`, {
          cause: error,
        });
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

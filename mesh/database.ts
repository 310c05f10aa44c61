/**
 * The database of one service: PostgreSQL through `pg` and Kysely, one schema per service, row-level security on
 * every tenant table.
 *
 * **Roles** (DESIGN 8.3), for a service whose schema is `device_registry`:
 *
 * | role | may |
 * | --- | --- |
 * | `device_registry_migrator` | log in by the migration URL; owns the schema and everything in it |
 * | `device_registry` | log in by the app URL; owns nothing, inherits nothing, may only become one of the next three |
 * | `device_registry_app` | tenant tables, one organisation per transaction (`app.org_id`) |
 * | `device_registry_ingest` | tenant tables, the organisations of one batch (`app.org_ids`) |
 * | `device_registry_system` | no tenant table but those a migration grants by `mesh.system_access`; outbox, leases |
 *
 * One pool serves all three: each transaction begins with `SET LOCAL ROLE` in the same round trip as `BEGIN`, so a
 * connection outside a transaction can do nothing. None of these roles bypasses row-level security; `openDatabase`
 * refuses to start when one does. `service-roles.ts` makes them.
 *
 * **Types on the wire**: `bigint` columns and `count(*)` are JavaScript bigints, `numeric` is text, `timestamptz` is
 * a Date (milliseconds), `bytea` is a Buffer, `jsonb` is parsed.
 *
 * How a service writes its tables: header of `migrations.ts`.
 */
import {
  type CompiledQuery,
  type DatabaseConnection,
  DefaultQueryExecutor,
  DummyDriver,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type QueryResult,
  SingleConnectionProvider,
  Transaction,
} from "kysely";
import pg from "pg";
import type { Logger } from "pino";
import type { Call } from "./call.ts";
import { mapDatabaseError, sqlStateOf } from "./database-error.ts";
import { databaseTarget, requireEncryptedTransport } from "./database-url.ts";
import { assertMigrated, migrate } from "./migrations.ts";
import { schemaOf, serviceRoles } from "./service-roles.ts";
import { setTransactionContext, type TransactionContext } from "./transaction-context.ts";

export { mapDatabaseError } from "./database-error.ts";
export { afterCommit } from "./transaction-context.ts";

/** How a transaction runs. */
export interface TransactionOptions {
  /** Default `read committed`. The stricter two are retried on a serialization failure, as is every deadlock. */
  isolation?: "read committed" | "repeatable read" | "serializable";
  /** Cancels a single statement after this time. Default and upper bound: the database's `statementTimeoutMs`. */
  statementTimeoutMs?: number;
}

/**
 * A service's database. Every method runs `fn` in one transaction and answers what `fn` answers.
 *
 * `fn` may run up to five times (deadlock, serialization failure), so it changes nothing but the database. The
 * transaction it is given is dead once `fn` has settled. Refusals thrown by `fn` roll back and pass through as they
 * are; errors of the driver pass through `mapDatabaseError`.
 */
export interface Database<DB> {
  readonly service: string;
  /** The service's schema; also the search path of every transaction. */
  readonly schema: string;
  /** Reads one organisation's rows: role app, `READ ONLY`. */
  read<T>(orgId: string, fn: (tx: Transaction<DB>) => Promise<T>, options?: TransactionOptions): Promise<T>;
  /**
   * Changes the rows of `call.orgId`: role app. Writes `call.audit` to `audit_outbox` in the same transaction, once
   * per draft however many transactions share it, and marks it written after the commit. Throws, before running
   * `fn`, when the call carries no draft and is not exempt.
   */
  write<T>(call: Call, fn: (tx: Transaction<DB>) => Promise<T>, options?: TransactionOptions): Promise<T>;
  /** Writes a batch over several organisations: role ingest, 1 to 4,096 of them. */
  ingest<T>(
    orgIds: readonly string[],
    fn: (tx: Transaction<DB>) => Promise<T>,
    options?: TransactionOptions,
  ): Promise<T>;
  /** Works without an organisation: role system, which sees only what migrations granted it. */
  system<T>(fn: (tx: Transaction<DB>) => Promise<T>, options?: TransactionOptions): Promise<T>;
  /** As `system`, and audited as `write` is: for a change that no single organisation's role can make. */
  systemWrite<T>(call: Call, fn: (tx: Transaction<DB>) => Promise<T>, options?: TransactionOptions): Promise<T>;
  /**
   * Opens a connection of its own, outside the pool, in the role system: for LISTEN and for polling with single
   * statements. The caller ends it; `close` ends what was forgotten.
   */
  session(): Promise<pg.Client>;
  /** Calls `listener` after each commit of this process that appended events; answers how to stop. */
  onEvents(listener: () => void): () => void;
  /** One round trip through the pool; rejects with UNAVAILABLE when the database is away. For readiness. */
  ping(): Promise<void>;
  /** Connections of the pool now: all, idle, and callers waiting for one. */
  pool(): { total: number; idle: number; waiting: number };
  /** Waits for transactions in flight, then closes every connection. Idempotent. */
  close(): Promise<void>;
}

/** What `openDatabase` needs. Durations in milliseconds. */
export interface DatabaseOptions {
  /** Service name such as `device-registry`; its schema is the same with `_` for `-`. */
  service: string;
  /** URL of the login role, `postgres://device_registry:…@host/db`. */
  url: string;
  /** URL of the migrator. Without it nothing is migrated, and a schema that lags behind is an error. */
  migrationUrl?: string;
  /** The folder of the service's `001_….sql` files. */
  migrations: URL | string;
  log: Logger;
  /** In production a remote database needs `sslmode=verify-full`. Default false. */
  production?: boolean;
  /** Name of the variable that `url` came from, for error messages. Default `DATABASE_URL`. */
  urlVariable?: string;
  /** Name of the variable that `migrationUrl` came from. Default `MIGRATION_URL`. */
  migrationUrlVariable?: string;
  /** Connections in the pool at most, 1 to 200. Default 8. */
  poolSize?: number;
  /** How long a call waits for a connection before UNAVAILABLE. Default 5,000. */
  connectTimeoutMs?: number;
  /** How long a start waits for a database that is not there yet. Default 5,000. */
  startWaitMs?: number;
  /** Longest single statement. Default 15,000. */
  statementTimeoutMs?: number;
  /** Longest wait for a row lock. Default 5,000. */
  lockTimeoutMs?: number;
  /** How long a transaction may sit idle before the server ends it. Default 15,000. */
  idleInTransactionTimeoutMs?: number;
}

const maxAttempts = 5;
const maxIngestOrganisations = 4096;
const orgPattern = /^org_[a-z0-9]{1,64}$/;

/**
 * Migrates a service's schema (when given `migrationUrl`), checks that its roles are what they must be, and opens
 * the pool. Fails with an error that names the variable and what is expected; no message holds a password.
 */
export async function openDatabase<DB>(options: DatabaseOptions): Promise<Database<DB>> {
  const { service, url, log } = options;
  const schema = schemaOf(service);
  const roles = serviceRoles(service);
  const urlVariable = options.urlVariable ?? "DATABASE_URL";
  const migrationUrlVariable = options.migrationUrlVariable ?? "MIGRATION_URL";
  const statementTimeoutMs = options.statementTimeoutMs ?? 15_000;
  if (options.production === true) {
    requireEncryptedTransport(url, urlVariable);
    if (options.migrationUrl !== undefined) requireEncryptedTransport(options.migrationUrl, migrationUrlVariable);
  }
  const target = databaseTarget(url, urlVariable);
  const startDeadline = Date.now() + (options.startWaitMs ?? 5_000);
  if (options.migrationUrl !== undefined) {
    databaseTarget(options.migrationUrl, migrationUrlVariable);
    await migrate({
      service,
      url: options.migrationUrl,
      urlVariable: migrationUrlVariable,
      migrations: options.migrations,
      log,
      startDeadline,
    });
  }

  const clientConfig: pg.ClientConfig = {
    connectionString: url,
    application_name: `octomesh ${service}`,
    connectionTimeoutMillis: options.connectTimeoutMs ?? 5_000,
    statement_timeout: statementTimeoutMs,
    lock_timeout: options.lockTimeoutMs ?? 5_000,
    idle_in_transaction_session_timeout: options.idleInTransactionTimeoutMs ?? 15_000,
    keepAlive: true,
    types: { getTypeParser: typeParser },
  };
  const pool = new pg.Pool({ ...clientConfig, max: options.poolSize ?? 8, idleTimeoutMillis: 60_000 });
  pool.on("error", (error) => log.warn({ err: error }, "an idle database connection was lost"));
  // A lost connection is reported by the statement it interrupts; the event alone must not end the process.
  pool.on("connect", (client) => client.on("error", () => {}));

  try {
    await waitForDatabase(pool, startDeadline, `${urlVariable} (${target})`);
    const client = await pool.connect();
    try {
      await assertRoles(client, service, urlVariable);
      await assertMigrated(client, { service, migrations: options.migrations, migrationUrlVariable, log });
    } finally {
      client.release();
    }
  } catch (error) {
    await pool.end();
    throw error;
  }

  const listeners = new Set<() => void>();
  const sessions = new Set<pg.Client>();
  let closing: Promise<void> | undefined;

  function announceEvents(): void {
    for (const listener of listeners) listener();
  }

  interface Plan {
    role: TransactionContext["role"];
    prologue: string;
    call?: Call;
  }

  async function attempt<T>(plan: Plan, fn: (tx: Transaction<DB>) => Promise<T>): Promise<T> {
    const client = await pool.connect();
    const connection = transactionConnection(client);
    const context: TransactionContext = { schema, role: plan.role, afterCommit: [], announceEvents };
    let broken: Error | undefined;
    let auditWritten = false;
    try {
      await client.query(plan.prologue);
      const tx = transactionOn<DB>(connection);
      setTransactionContext(tx, context);
      const result = await fn(tx);
      connection.end();
      plan.call?.signal.throwIfAborted();
      const audit = plan.call?.audit;
      auditWritten = audit?.state === "pending";
      const epilogue = plan.call !== undefined && auditWritten ? `${auditStatement(plan.call)};` : "";
      const ended = await client.query(`${epilogue}commit`);
      // A transaction that failed inside `fn`, with the error swallowed there, answers COMMIT with ROLLBACK.
      const command = (Array.isArray(ended) ? ended.at(-1) : ended)?.command;
      if (command !== "COMMIT") throw new Error("a statement of the transaction had failed: nothing was committed");
      if (auditWritten) audit?.markWritten();
      for (const callback of context.afterCommit) {
        try {
          callback();
        } catch (error) {
          log.error({ err: error }, "work after a commit failed");
        }
      }
      return result;
    } catch (error) {
      connection.end();
      try {
        await client.query("rollback");
      } catch (rollbackError) {
        broken = rollbackError instanceof Error ? rollbackError : new Error("rollback failed");
      }
      throw error;
    } finally {
      client.release(broken);
    }
  }

  async function run<T>(plan: Plan, fn: (tx: Transaction<DB>) => Promise<T>): Promise<T> {
    if (closing !== undefined) throw mapDatabaseError(Object.assign(new Error("closing"), { code: "57P01" }));
    for (let tried = 1; ; tried++) {
      plan.call?.signal.throwIfAborted();
      try {
        return await attempt(plan, fn);
      } catch (error) {
        if (tried >= maxAttempts || !isRetryable(error)) throw mapDatabaseError(error);
        await new Promise((resolve) => setTimeout(resolve, 5 * 2 ** tried * (0.5 + Math.random())));
      }
    }
  }

  function prologue(
    mode: "read only" | "read write",
    role: string,
    how: TransactionOptions = {},
    setting = "",
  ): string {
    const timeout =
      how.statementTimeoutMs === undefined
        ? ""
        : `;set local statement_timeout = ${Math.min(statementTimeoutMs, Math.max(1, Math.ceil(how.statementTimeoutMs)))}`;
    return `begin isolation level ${how.isolation ?? "read committed"} ${mode};set local role ${role}${timeout}${setting}`;
  }

  return {
    service,
    schema,
    read(orgId, fn, how) {
      return settle(() => run({ role: "app", prologue: prologue("read only", roles.app, how, orgSetting(orgId)) }, fn));
    },
    write(call, fn, how) {
      return settle(() => {
        assertAudited(call);
        return run({ role: "app", prologue: prologue("read write", roles.app, how, orgSetting(call.orgId)), call }, fn);
      });
    },
    ingest(orgIds, fn, how) {
      return settle(() =>
        run({ role: "ingest", prologue: prologue("read write", roles.ingest, how, orgsSetting(orgIds)) }, fn),
      );
    },
    system(fn, how) {
      return settle(() => run({ role: "system", prologue: prologue("read write", roles.system, how) }, fn));
    },
    systemWrite(call, fn, how) {
      return settle(() => {
        assertAudited(call);
        return run({ role: "system", prologue: prologue("read write", roles.system, how), call }, fn);
      });
    },
    async session() {
      if (closing !== undefined) throw new Error("the database is closing");
      const client = new pg.Client(clientConfig);
      client.on("error", () => {});
      try {
        await client.connect();
        await client.query(`set role ${roles.system}`);
      } catch (error) {
        await client.end().catch(() => {});
        throw mapDatabaseError(error);
      }
      sessions.add(client);
      client.once("end", () => sessions.delete(client));
      return client;
    },
    onEvents(listener) {
      listeners.add(listener);
      return () => {
        listeners.delete(listener);
      };
    },
    async ping() {
      try {
        await pool.query("select 1");
      } catch (error) {
        throw mapDatabaseError(error);
      }
    },
    pool: () => ({ total: pool.totalCount, idle: pool.idleCount, waiting: pool.waitingCount }),
    close() {
      closing ??= (async () => {
        await Promise.all([...sessions].map((client) => client.end().catch(() => {})));
        await pool.end();
      })();
      return closing;
    },
  };
}

function typeParser(oid: number, format?: "text" | "binary"): (value: string) => unknown {
  if (oid === pg.types.builtins.INT8 && format !== "binary") return BigInt;
  return pg.types.getTypeParser(oid, format as "text");
}

/** A synchronous refusal becomes a rejection, so that callers have one way to see it. */
async function settle<T>(start: () => Promise<T>): Promise<T> {
  return await start();
}

function isRetryable(error: unknown): boolean {
  const state = sqlStateOf(error);
  return state === "40001" || state === "40P01";
}

function orgSetting(orgId: string): string {
  if (!orgPattern.test(orgId)) throw new TypeError("a transaction of the app role needs the organisation it acts for");
  return `;set local app.org_id = '${orgId}'`;
}

function orgsSetting(orgIds: readonly string[]): string {
  const distinct = [...new Set(orgIds)];
  if (distinct.length === 0 || distinct.length > maxIngestOrganisations) {
    throw new RangeError(`a batch covers 1 to ${maxIngestOrganisations} organisations, not ${distinct.length}`);
  }
  if (!distinct.every((orgId) => orgPattern.test(orgId))) throw new TypeError("a batch names an invalid organisation");
  return `;set local app.org_ids = '${distinct.join(",")}'`;
}

function assertAudited(call: Call): void {
  if (call.audit === undefined && call.auditExempt !== true) {
    throw new Error("a change needs the call's audit draft: its policy names no audit action and does not exempt it");
  }
}

/** The insert of the call's audit event, as text so that it travels in one round trip with COMMIT. */
function auditStatement(call: Call): string {
  const { audit, caller } = call;
  if (audit === undefined) return "";
  const values = [
    text(audit.id),
    text(call.orgId),
    `to_timestamp(${audit.time} / 1000.0)`,
    text(audit.action),
    text("success"),
    text(caller.kind),
    text(caller.id),
    text(caller.credentialId),
    text(caller.delegate?.kind ?? ""),
    text(caller.delegate?.id ?? ""),
    text(audit.target.type),
    text(audit.target.id),
    text(audit.target.name),
    text(call.requestId),
    text(caller.address),
    `${text(JSON.stringify(cleanNotes(audit.notes)))}::jsonb`,
  ];
  return `insert into audit_outbox (id, org_id, time, action, outcome, actor_kind, actor_id, credential_id,
    delegate_kind, delegate_id, resource_type, resource_id, resource_name, request_id, address, metadata)
    values (${values.join(", ")}) on conflict (id) do nothing`;
}

function text(value: string): string {
  return pg.escapeLiteral(storableText(value));
}

/** PostgreSQL text holds neither U+0000 nor half a surrogate pair: both become U+FFFD. */
function storableText(value: string): string {
  return Buffer.from(value, "utf8").toString("utf8").replaceAll("\u0000", "\uFFFD");
}

function cleanNotes(notes: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(notes).map(([key, value]) => [storableText(key), storableText(value)]));
}

interface TransactionConnection extends DatabaseConnection {
  /** From here on every statement is refused: the connection may already serve another tenant. */
  end(): void;
}

function transactionConnection(client: pg.PoolClient): TransactionConnection {
  let ended = false;
  return {
    end() {
      ended = true;
    },
    async executeQuery<R>(query: CompiledQuery): Promise<QueryResult<R>> {
      if (ended) throw new Error("the transaction has ended");
      const result = await client.query(query.sql, [...query.parameters]);
      return { rows: result.rows, numAffectedRows: affectedRows(result) };
    },
    streamQuery() {
      throw new Error("results are not streamed: page through them by key");
    },
  };
}

function affectedRows(result: pg.QueryResult): bigint | undefined {
  return /^(INSERT|UPDATE|DELETE|MERGE)$/.test(result.command) ? BigInt(result.rowCount ?? 0) : undefined;
}

const adapter = new PostgresAdapter();
const compiler = new PostgresQueryCompiler();
const driver = new DummyDriver();
const dialect = {
  createAdapter: () => adapter,
  createDriver: () => driver,
  createQueryCompiler: () => compiler,
  createIntrospector: (database: ConstructorParameters<typeof PostgresIntrospector>[0]) =>
    new PostgresIntrospector(database),
};

function transactionOn<DB>(connection: DatabaseConnection): Transaction<DB> {
  const executor = new DefaultQueryExecutor(compiler, adapter, new SingleConnectionProvider(connection));
  return new Transaction<DB>({ config: { dialect }, dialect, driver, executor });
}

async function waitForDatabase(pool: pg.Pool, deadline: number, name: string): Promise<void> {
  for (;;) {
    try {
      (await pool.connect()).release();
      return;
    } catch (error) {
      const state = sqlStateOf(error);
      if (state?.startsWith("28") || state?.startsWith("3D") || Date.now() >= deadline) {
        const detail = error instanceof Error ? error.message || state : String(error);
        throw new Error(`${name}: cannot connect to PostgreSQL: ${detail}`, { cause: error });
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

/** Refuses to run with roles that would make row-level security decorative. */
async function assertRoles(client: pg.PoolClient, service: string, urlVariable: string): Promise<void> {
  const roles = serviceRoles(service);
  const schema = schemaOf(service);
  const needed = [roles.app, roles.ingest, roles.system];
  const { rows } = await client.query<{
    name: string;
    unsafe: boolean;
    owns: boolean;
    member: boolean;
    path: string | null;
  }>(
    `select r.rolname as name, r.rolsuper or r.rolbypassrls or r.rolcreaterole or r.rolcreatedb as unsafe,
       exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where c.relowner = r.oid and n.nspname = $2) as owns,
       pg_has_role(session_user, r.oid, 'member') as member, current_schema() as path
     from pg_roles r where r.rolname = any($1::text[]) or r.rolname = session_user`,
    [needed, schema],
  );
  const missing = needed.filter((name) => !rows.some((row) => row.name === name && row.member));
  if (missing.length > 0) {
    throw new Error(
      `${urlVariable}: the login role lacks ${missing.join(", ")}: create the roles of "${service}" first (mesh/service-roles.ts)`,
    );
  }
  const unsafe = rows.find((row) => row.unsafe || row.owns);
  if (unsafe !== undefined) {
    throw new Error(
      `${urlVariable}: role ${unsafe.name} is a superuser, bypasses row-level security or owns tables; use the service's own login role "${roles.login}"`,
    );
  }
  const path = rows[0]?.path;
  if (path !== schema) {
    throw new Error(`${urlVariable}: the login role's search_path must be ${schema}, not ${path ?? "empty"}`);
  }
}

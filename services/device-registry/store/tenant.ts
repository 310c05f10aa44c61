import type { Database } from "@octomesh/mesh/database";
import { sql, type Transaction } from "kysely";
import type { DeviceRegistryTables } from "../tables.ts";

/** What an erasure removed, by table, and what a fresh search still found. */
export interface Erasure {
  readonly erased: Readonly<Record<string, bigint>>;
  readonly remaining: bigint;
}

/** The part of the store that forgets organisations. */
export interface TenantStore {
  /** Erases every row of an organisation. Repeating it is safe. */
  erase(orgId: string): Promise<Erasure>;
}

/** Tables that hold rows of organisations, those that others point to last. */
const tenantTables = [
  "observed_models",
  "observed_states",
  "device_group_members",
  "device_groups",
  "device_presence",
  "devices",
  "idempotency",
] as const;

/** Events of an organisation that wait for those who read them: of its devices, and of the audit log. */
const eventTables = ["outbox", "audit_outbox"] as const;

/** Rows deleted by one statement: an organisation of any size stays within the statement timeout. */
const rowsAtOnce = 10_000;

/** Opens the tenant part of the store. */
export function tenantStore(database: Database<DeviceRegistryTables>): TenantStore {
  return {
    async erase(orgId) {
      const erased: Record<string, bigint> = {};
      for (const table of tenantTables) erased[table] = await eraseTable(database, orgId, table);
      for (const table of eventTables) erased[table] = await eraseEvents(database, orgId, table);
      return { erased, remaining: await countRemaining(database, orgId) };
    },
  };
}

async function eraseTable(database: Database<DeviceRegistryTables>, orgId: string, table: string): Promise<bigint> {
  let total = 0n;
  for (;;) {
    const result = await database.ingest([orgId], (tx) =>
      sql`delete from ${sql.table(table)} where ctid = any(array(
        select ctid from ${sql.table(table)} where org_id = ${orgId} limit ${rowsAtOnce}))`.execute(tx),
    );
    const deleted = result.numAffectedRows ?? 0n;
    total += deleted;
    if (deleted < BigInt(rowsAtOnce)) return total;
  }
}

async function eraseEvents(database: Database<DeviceRegistryTables>, orgId: string, table: string): Promise<bigint> {
  const result = await database.system((tx) =>
    sql`delete from ${sql.table(table)} where org_id = ${orgId}`.execute(tx),
  );
  return result.numAffectedRows ?? 0n;
}

async function countRemaining(database: Database<DeviceRegistryTables>, orgId: string): Promise<bigint> {
  const rows = await database.ingest([orgId], (tx) => countIn(tx, orgId, tenantTables));
  const events = await database.system((tx) => countIn(tx, orgId, eventTables));
  return rows + events;
}

async function countIn(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  tables: readonly string[],
): Promise<bigint> {
  const counts = tables.map((table) => sql`(select count(*) from ${sql.table(table)} where org_id = ${orgId})`);
  const { rows } = await sql<{ count: bigint }>`select (${sql.join(counts, sql` + `)})::bigint as count`.execute(tx);
  return rows[0]?.count ?? 0n;
}

import { sql } from "kysely";
import type { Tx } from "./tables.ts";

/** The tables that hold an organisation's rows, in an order in which they can be emptied. */
const tenantTables = [
  "rollout_transitions",
  "rollouts",
  "rollout_revisions",
  "model_versions",
  "models",
  "artifact_uploads",
  "blob_garbage",
  "artifacts",
  "manifest_keys",
  "idempotency",
] as const;

/** Deletes an organisation's rows (role app); answers how many by table. */
export async function eraseRows(tx: Tx, orgId: string): Promise<Record<string, bigint>> {
  const erased: Record<string, bigint> = {};
  for (const table of tenantTables) {
    const { numAffectedRows } = await sql`delete from ${sql.table(table)} where org_id = ${orgId}`.execute(tx);
    erased[table] = numAffectedRows ?? 0n;
  }
  return erased;
}

/** Events of an organisation that wait for those who read them: of definitions, and of the audit log. */
const eventTables = ["outbox", "audit_outbox"] as const;

/** Deletes an organisation's events that readers were to get (role system); answers how many by table. */
export async function eraseEvents(tx: Tx, orgId: string): Promise<Record<string, bigint>> {
  const erased: Record<string, bigint> = {};
  for (const table of eventTables) {
    const { numAffectedRows } = await sql`delete from ${sql.table(table)} where org_id = ${orgId}`.execute(tx);
    erased[table] = numAffectedRows ?? 0n;
  }
  return erased;
}

/** Counts what an organisation has in every table (role app). */
export async function countRows(tx: Tx, orgId: string): Promise<bigint> {
  return await countIn(tx, orgId, tenantTables);
}

/** Counts an organisation's events (role system). */
export async function countEvents(tx: Tx, orgId: string): Promise<bigint> {
  return await countIn(tx, orgId, eventTables);
}

async function countIn(tx: Tx, orgId: string, tables: readonly string[]): Promise<bigint> {
  let count = 0n;
  for (const table of tables) {
    const { rows } = await sql<{ count: bigint }>`
      select count(*) as count from ${sql.table(table)} where org_id = ${orgId}`.execute(tx);
    count += rows[0]?.count ?? 0n;
  }
  return count;
}

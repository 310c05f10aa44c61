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

/** Deletes an organisation's events that watchers were to get (role system). */
export async function eraseEvents(tx: Tx, orgId: string): Promise<bigint> {
  const { numAffectedRows } = await sql`delete from outbox where org_id = ${orgId}`.execute(tx);
  return numAffectedRows ?? 0n;
}

/** Counts what an organisation has in every table (role app). */
export async function countRows(tx: Tx, orgId: string): Promise<bigint> {
  let count = 0n;
  for (const table of tenantTables) {
    const { rows } = await sql<{ count: bigint }>`
      select count(*) as count from ${sql.table(table)} where org_id = ${orgId}`.execute(tx);
    count += rows[0]?.count ?? 0n;
  }
  return count;
}

/** Counts an organisation's events (role system). */
export async function countEvents(tx: Tx, orgId: string): Promise<bigint> {
  const { rows } = await sql<{ count: bigint }>`select count(*) as count from outbox where org_id = ${orgId}`.execute(
    tx,
  );
  return rows[0]?.count ?? 0n;
}

import { sql } from "kysely";
import type { IdentityTransaction } from "../schema.ts";

/** Tenant tables that an erasure empties, in this order: the organisation itself goes last. */
const erasedTables = [
  "refresh_tokens",
  "sessions",
  "device_credentials",
  "read_tokens",
  "api_keys",
  "bootstrap_tokens",
  "embedded_edges",
  "edge_signing_keys",
  "edge_certificates",
  "license_keys",
  "partner_keys",
  "members",
  "idempotency",
  "organizations",
] as const;

/**
 * Erases an organisation's rows and answers how many by table; role ingest. Its revocations go too, except for the one
 * that keeps refusing what was signed for it (`subject` is that one's number).
 */
export async function eraseRows(
  tx: IdentityTransaction,
  orgId: string,
  subject: number,
): Promise<Record<string, number>> {
  const erased: Record<string, number> = {};
  for (const table of erasedTables) {
    const { numAffectedRows } = await sql`delete from ${sql.table(table)} where org_id = ${orgId}`.execute(tx);
    erased[table] = Number(numAffectedRows ?? 0n);
  }
  const { numDeletedRows } = await tx
    .deleteFrom("revocations")
    .where("org_id", "=", orgId)
    .where("subject", "!=", subject)
    .executeTakeFirst();
  erased.revocations = Number(numDeletedRows);
  return erased;
}

/** Counts what an erasure left of an organisation, in every table it empties; role ingest. */
export async function countRows(tx: IdentityTransaction, orgId: string, subject: number): Promise<number> {
  let count = 0;
  for (const table of erasedTables) {
    const { rows } = await sql<{ count: bigint }>`
      select count(*) as count from ${sql.table(table)} where org_id = ${orgId}`.execute(tx);
    count += Number(rows[0]?.count ?? 0n);
  }
  const left = await tx
    .selectFrom("revocations")
    .select(({ fn }) => fn.countAll<bigint>().as("count"))
    .where("org_id", "=", orgId)
    .where("subject", "!=", subject)
    .executeTakeFirstOrThrow();
  return count + Number(left.count);
}

/** Erases an organisation's audit events that wait for their reader, but for that of the deletion itself; role system. */
export async function eraseAuditOutbox(tx: IdentityTransaction, orgId: string, action: string): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from audit_outbox where org_id = ${orgId} and action <> ${action}`.execute(tx);
  return Number(numAffectedRows ?? 0n);
}

/** What one service erased. */
export interface ErasureRow {
  readonly service: string;
  readonly erased: Record<string, number>;
  readonly remaining: bigint;
}

/** Adds to what a service has erased so far of an organisation that is being deleted. */
export async function addErasure(
  tx: IdentityTransaction,
  orgId: string,
  erasure: { service: string; erased: Record<string, number>; remaining: number },
): Promise<void> {
  const { service, remaining } = erasure;
  const before = await tx
    .selectFrom("erasures")
    .select("erased")
    .where("org_id", "=", orgId)
    .where("service", "=", service)
    .forUpdate()
    .executeTakeFirst();
  const sum: Record<string, number> = { ...before?.erased };
  for (const [table, count] of Object.entries(erasure.erased)) sum[table] = (sum[table] ?? 0) + count;
  const erased = JSON.stringify(sum);
  await tx
    .insertInto("erasures")
    .values({ org_id: orgId, service, erased, remaining: BigInt(remaining) })
    .onConflict((conflict) =>
      conflict.columns(["org_id", "service"]).doUpdateSet({ erased, remaining: BigInt(remaining) }),
    )
    .execute();
}

/** What has been erased so far, by service. */
export async function listErasures(tx: IdentityTransaction, orgId: string): Promise<ErasureRow[]> {
  return await tx
    .selectFrom("erasures")
    .select(["service", "erased", "remaining"])
    .where("org_id", "=", orgId)
    .orderBy("service")
    .execute();
}

/** Forgets the proof, once it has been answered. */
export async function deleteErasures(tx: IdentityTransaction, orgId: string): Promise<void> {
  await tx.deleteFrom("erasures").where("org_id", "=", orgId).execute();
}

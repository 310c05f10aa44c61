import type { Insertable, Selectable } from "kysely";
import type { IdentityTransaction, ReadTokenTable } from "../schema.ts";

/** A stored read token. */
export type ReadTokenRow = Selectable<ReadTokenTable>;

/** Writes a read token. */
export async function insertReadToken(tx: IdentityTransaction, row: Insertable<ReadTokenTable>): Promise<ReadTokenRow> {
  return await tx.insertInto("read_tokens").values(row).returningAll().executeTakeFirstOrThrow();
}

/** Reads a read token. */
export async function findReadToken(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
): Promise<ReadTokenRow | undefined> {
  return await tx
    .selectFrom("read_tokens")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .executeTakeFirst();
}

/** Revokes one read token, or all that a member or key made; answers those that this revoked. */
export async function revokeReadTokens(
  tx: IdentityTransaction,
  orgId: string,
  which: { id: string } | { creatorId: string },
  now: Date,
): Promise<ReadTokenRow[]> {
  const query = tx
    .updateTable("read_tokens")
    .set({ revoke_time: now })
    .where("org_id", "=", orgId)
    .where("revoke_time", "is", null);
  return await ("id" in which ? query.where("id", "=", which.id) : query.where("creator_id", "=", which.creatorId))
    .returningAll()
    .execute();
}

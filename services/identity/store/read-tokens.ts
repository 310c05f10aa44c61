import { fail, Reason } from "@octomesh/mesh/errors";
import { type Insertable, type Selectable, sql } from "kysely";
import type { IdentityTransaction, ReadTokenTable } from "../schema.ts";

/** A stored read token. */
export type ReadTokenRow = Selectable<ReadTokenTable>;

/** Read tokens of one member or key that may be good at a time: whoever revokes their maker ends them all at once. */
export const maxReadTokensOfCreator = 1000;

/**
 * Writes a read token. Throws QUOTA_EXCEEDED where its maker has as many good ones as it may; those who make some at the
 * same time may exceed that by a few.
 */
export async function insertReadToken(tx: IdentityTransaction, row: Insertable<ReadTokenTable>): Promise<ReadTokenRow> {
  const { count } = await tx
    .selectFrom("read_tokens")
    .select(sql<bigint>`count(*)`.as("count"))
    .where("org_id", "=", row.org_id)
    .where("creator_id", "=", row.creator_id)
    .where("revoke_time", "is", null)
    .where("expire_time", ">", row.create_time)
    .executeTakeFirstOrThrow();
  if (count >= BigInt(maxReadTokensOfCreator)) {
    const message = `${maxReadTokensOfCreator} read tokens are good already: revoke one, or wait until one expires`;
    throw fail(Reason.QUOTA_EXCEEDED, message, { limit: String(maxReadTokensOfCreator) });
  }
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

/**
 * Revokes one read token, or all that a member or key made; answers those that this revoked. Those that expired before
 * `expiredBefore` are passed over: no service takes them any more.
 */
export async function revokeReadTokens(
  tx: IdentityTransaction,
  orgId: string,
  which: { id: string } | { creatorId: string },
  now: Date,
  expiredBefore: Date,
): Promise<ReadTokenRow[]> {
  const query = tx
    .updateTable("read_tokens")
    .set({ revoke_time: now })
    .where("org_id", "=", orgId)
    .where("revoke_time", "is", null)
    .where("expire_time", ">", expiredBefore);
  return await ("id" in which ? query.where("id", "=", which.id) : query.where("creator_id", "=", which.creatorId))
    .returningAll()
    .execute();
}

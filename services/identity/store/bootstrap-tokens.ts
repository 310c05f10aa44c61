import { type Insertable, type Selectable, sql } from "kysely";
import type { BootstrapTokenTable, IdentityTransaction } from "../schema.ts";

/** A stored bootstrap or enrolment token. */
export type BootstrapTokenRow = Selectable<BootstrapTokenTable>;

/** Writes a token. */
export async function insertBootstrapToken(
  tx: IdentityTransaction,
  row: Insertable<BootstrapTokenTable>,
): Promise<BootstrapTokenRow> {
  return await tx.insertInto("bootstrap_tokens").values(row).returningAll().executeTakeFirstOrThrow();
}

/** Reads a token. */
export async function findBootstrapToken(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
): Promise<BootstrapTokenRow | undefined> {
  return await tx
    .selectFrom("bootstrap_tokens")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .executeTakeFirst();
}

/** A page of tokens, newest first. */
export async function listBootstrapTokens(
  tx: IdentityTransaction,
  orgId: string,
  page: { limit: number; after?: { time: Date; id: string } },
): Promise<BootstrapTokenRow[]> {
  const { after } = page;
  let query = tx.selectFrom("bootstrap_tokens").selectAll().where("org_id", "=", orgId);
  if (after !== undefined) {
    query = query.where(({ eb, refTuple, tuple }) =>
      eb(refTuple("create_time", "id"), "<", tuple(after.time, after.id)),
    );
  }
  return await query.orderBy("create_time", "desc").orderBy("id", "desc").limit(page.limit).execute();
}

/**
 * Takes one use of a token that is good, in one statement: of many at once, as many succeed as uses are left. Answers
 * false where the token is used up, expired or killed.
 */
export async function takeUse(tx: IdentityTransaction, orgId: string, id: string, now: Date): Promise<boolean> {
  const result = await tx
    .updateTable("bootstrap_tokens")
    .set({ uses: sql`uses + 1` })
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .whereRef("uses", "<", "max_uses")
    .where("expire_time", ">", now)
    .where("revoke_time", "is", null)
    .executeTakeFirst();
  return result.numUpdatedRows === 1n;
}

/** Kills a token; the time of an earlier kill stays. Answers the token, undefined if there is none. */
export async function revokeBootstrapToken(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
  now: Date,
): Promise<BootstrapTokenRow | undefined> {
  return await tx
    .updateTable("bootstrap_tokens")
    .set({ revoke_time: sql`coalesce(revoke_time, ${now})` })
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .returningAll()
    .executeTakeFirst();
}

import { type Insertable, type Selectable, sql } from "kysely";
import type { ApiKeyTable, IdentityTransaction } from "../schema.ts";

/** A stored API key. */
export type ApiKeyRow = Selectable<ApiKeyTable>;

/** Writes a key. */
export async function insertApiKey(tx: IdentityTransaction, row: Insertable<ApiKeyTable>): Promise<ApiKeyRow> {
  return await tx.insertInto("api_keys").values(row).returningAll().executeTakeFirstOrThrow();
}

/** Reads a key. */
export async function findApiKey(tx: IdentityTransaction, orgId: string, id: string): Promise<ApiKeyRow | undefined> {
  return await tx
    .selectFrom("api_keys")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .executeTakeFirst();
}

/** Whether a key is there and not revoked. One that is cannot be revoked before this transaction has ended. */
export async function holdApiKey(tx: IdentityTransaction, orgId: string, id: string): Promise<boolean> {
  const row = await tx
    .selectFrom("api_keys")
    .select("id")
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .where("revoke_time", "is", null)
    .forShare()
    .executeTakeFirst();
  return row !== undefined;
}

/** A page of keys, newest first. */
export async function listApiKeys(
  tx: IdentityTransaction,
  orgId: string,
  page: { limit: number; after?: { time: Date; id: string } },
): Promise<ApiKeyRow[]> {
  const { after } = page;
  let query = tx.selectFrom("api_keys").selectAll().where("org_id", "=", orgId);
  if (after !== undefined) {
    query = query.where(({ eb, refTuple, tuple }) =>
      eb(refTuple("create_time", "id"), "<", tuple(after.time, after.id)),
    );
  }
  return await query.orderBy("create_time", "desc").orderBy("id", "desc").limit(page.limit).execute();
}

/** Revokes a key; the time of an earlier revocation stays. Answers the key, undefined if there is none. */
export async function revokeApiKey(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
  now: Date,
): Promise<ApiKeyRow | undefined> {
  return await tx
    .updateTable("api_keys")
    .set({ revoke_time: sql`coalesce(revoke_time, ${now})` })
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .returningAll()
    .executeTakeFirst();
}

/** One use of a key. */
export interface KeyUse {
  readonly orgId: string;
  readonly id: string;
  readonly time: Date;
}

/** Moves the time of last use forward, for many keys of several organisations; role ingest. */
export async function updateLastUse(
  tx: IdentityTransaction,
  table: "api_keys" | "partner_keys",
  uses: readonly KeyUse[],
): Promise<void> {
  await sql`
    update ${sql.table(table)} as keys set last_use_time = used.time
    from (
      select org_id, id, max(time) as time
      from unnest(${uses.map((use) => use.orgId)}::text[], ${uses.map((use) => use.id)}::text[],
                  ${uses.map((use) => use.time)}::timestamptz[]) as used (org_id, id, time)
      group by org_id, id
    ) used
    where keys.org_id = used.org_id and keys.id = used.id
      and (keys.last_use_time is null or keys.last_use_time < used.time)`.execute(tx);
}

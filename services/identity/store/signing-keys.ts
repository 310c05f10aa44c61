import { type Insertable, type Selectable, sql } from "kysely";
import type { IdentityTransaction, SigningKeyTable } from "../schema.ts";

/** A stored signing key. */
export type SigningKeyRow = Selectable<SigningKeyTable>;

/** Makes those who look after the keys wait for each other until the transaction ends; role system, as all here. */
export async function lockSigningKeys(tx: IdentityTransaction): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtextextended('octomesh identity signing keys', 0))`.execute(tx);
}

/** All keys, the one that came into force last first. */
export async function listSigningKeys(tx: IdentityTransaction): Promise<SigningKeyRow[]> {
  return await tx.selectFrom("signing_keys").selectAll().orderBy("activate_time", "desc").orderBy("kid").execute();
}

/** Adds a key. */
export async function insertSigningKey(tx: IdentityTransaction, row: Insertable<SigningKeyTable>): Promise<void> {
  await tx.insertInto("signing_keys").values(row).execute();
}

/** Deletes keys whose tokens have all expired. */
export async function deleteSigningKeys(tx: IdentityTransaction, kids: readonly string[]): Promise<void> {
  if (kids.length > 0) await tx.deleteFrom("signing_keys").where("kid", "in", kids).execute();
}

import type { Insertable, Selectable } from "kysely";
import type { Tables, Tx } from "./tables.ts";

/** A manifest key as it is stored. */
export type ManifestKeyRow = Selectable<Tables["manifest_keys"]>;

/** An organisation's manifest keys: the one that signs first, then retired ones, newest first. At most 16. */
export async function listManifestKeys(tx: Tx, orgId: string): Promise<ManifestKeyRow[]> {
  return await tx
    .selectFrom("manifest_keys")
    .selectAll()
    .where("org_id", "=", orgId)
    .orderBy("retire_time", (order) => order.desc().nullsFirst())
    .limit(16)
    .execute();
}

/** The key that signs; undefined before its first use. */
export async function currentManifestKey(tx: Tx, orgId: string): Promise<ManifestKeyRow | undefined> {
  return await tx
    .selectFrom("manifest_keys")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("retire_time", "is", null)
    .executeTakeFirst();
}

/** Stores an organisation's first key, unless somebody was faster. */
export async function insertManifestKey(tx: Tx, row: Insertable<Tables["manifest_keys"]>): Promise<void> {
  await tx
    .insertInto("manifest_keys")
    .values(row)
    .onConflict((conflict) => conflict.column("org_id").where("retire_time", "is", null).doNothing())
    .execute();
}

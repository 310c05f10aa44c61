import { type Insertable, type Selectable, sql } from "kysely";
import type { EdgeAuthorityTable, IdentityTransaction, LicenseSigningKeyTable } from "../schema.ts";

/** Makes those who open the issuer wait for each other until the transaction ends; role system, as all here. */
export async function lockEdgeIssuer(tx: IdentityTransaction): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtextextended('octomesh identity edge issuer', 0))`.execute(tx);
}

/** The key of licences that came into force last; undefined where there is none. */
export async function findLicenseSigningKey(
  tx: IdentityTransaction,
): Promise<Selectable<LicenseSigningKeyTable> | undefined> {
  return await tx
    .selectFrom("license_signing_keys")
    .selectAll()
    .orderBy("activate_time", "desc")
    .limit(1)
    .executeTakeFirst();
}

/** Adds a key of licences. */
export async function insertLicenseSigningKey(
  tx: IdentityTransaction,
  row: Insertable<LicenseSigningKeyTable>,
): Promise<Selectable<LicenseSigningKeyTable>> {
  return await tx.insertInto("license_signing_keys").values(row).returningAll().executeTakeFirstOrThrow();
}

/** The authority of edges that was made last; undefined where there is none. */
export async function findEdgeAuthority(tx: IdentityTransaction): Promise<Selectable<EdgeAuthorityTable> | undefined> {
  return await tx.selectFrom("edge_authorities").selectAll().orderBy("create_time", "desc").limit(1).executeTakeFirst();
}

/** Adds an authority of edges. */
export async function insertEdgeAuthority(
  tx: IdentityTransaction,
  row: Insertable<EdgeAuthorityTable>,
): Promise<Selectable<EdgeAuthorityTable>> {
  return await tx.insertInto("edge_authorities").values(row).returningAll().executeTakeFirstOrThrow();
}

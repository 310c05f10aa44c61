import { type Insertable, type Selectable, sql } from "kysely";
import type {
  EdgeCertificateTable,
  EdgeSigningKeyTable,
  EmbeddedEdgeTable,
  IdentitySchema,
  IdentityTransaction,
  LicenseKeyTable,
  PartnerKeyTable,
} from "../schema.ts";

/** A stored licence. */
export type LicenseKeyRow = Selectable<LicenseKeyTable>;
/** A stored partner key. */
export type PartnerKeyRow = Selectable<PartnerKeyTable>;
/** A stored client certificate. */
export type EdgeCertificateRow = Selectable<EdgeCertificateTable>;
/** A stored signing key. */
export type EdgeSigningKeyRow = Selectable<EdgeSigningKeyTable>;

/** Tables of what edges and partners prove themselves with. */
export type EdgeTable = "license_keys" | "partner_keys" | "edge_certificates" | "edge_signing_keys";

/** Reads one row. */
export async function findEdgeRow<T extends EdgeTable>(
  tx: IdentityTransaction,
  table: T,
  orgId: string,
  id: string,
): Promise<Selectable<IdentitySchema[T]> | undefined> {
  const { rows } = await sql<Selectable<IdentitySchema[T]>>`
    select * from ${sql.table(table)} where org_id = ${orgId} and id = ${id}`.execute(tx);
  return rows[0];
}

/** Reads a licence and keeps others from issuing for it, and from revoking it, until the transaction ends. */
export async function lockLicense(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
): Promise<LicenseKeyRow | undefined> {
  return await tx
    .selectFrom("license_keys")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .forUpdate()
    .executeTakeFirst();
}

/** A page of rows, newest first; of one licence where one is named. */
export async function listEdgeRows<T extends EdgeTable>(
  tx: IdentityTransaction,
  table: T,
  orgId: string,
  page: { limit: number; after?: { time: Date; id: string }; licenseKeyId?: string },
): Promise<Selectable<IdentitySchema[T]>[]> {
  const { after, licenseKeyId = "" } = page;
  const later = after === undefined ? sql`` : sql`and (create_time, id) < (${after.time}, ${after.id})`;
  const ofLicense = licenseKeyId === "" ? sql`` : sql`and license_key_id = ${licenseKeyId}`;
  const { rows } = await sql<Selectable<IdentitySchema[T]>>`
    select * from ${sql.table(table)} where org_id = ${orgId} ${later} ${ofLicense}
    order by create_time desc, id desc limit ${page.limit}`.execute(tx);
  return rows;
}

/** Revokes one row; the time of an earlier revocation stays. */
export async function revokeEdgeRow<T extends EdgeTable>(
  tx: IdentityTransaction,
  table: T,
  orgId: string,
  id: string,
  now: Date,
): Promise<Selectable<IdentitySchema[T]> | undefined> {
  const { rows } = await sql<Selectable<IdentitySchema[T]>>`
    update ${sql.table(table)} set revoke_time = coalesce(revoke_time, ${now})
    where org_id = ${orgId} and id = ${id} returning *`.execute(tx);
  return rows[0];
}

/** Revokes what a licence still has of a table; answers those that this revoked. */
export async function revokeOfLicense<T extends "edge_certificates" | "edge_signing_keys">(
  tx: IdentityTransaction,
  table: T,
  orgId: string,
  licenseKeyId: string,
  now: Date,
): Promise<Selectable<IdentitySchema[T]>[]> {
  const { rows } = await sql<Selectable<IdentitySchema[T]>>`
    update ${sql.table(table)} set revoke_time = ${now}
    where org_id = ${orgId} and license_key_id = ${licenseKeyId} and revoke_time is null returning *`.execute(tx);
  return rows;
}

/** How many certificates or signing keys of a licence are good. */
export async function countGood(
  tx: IdentityTransaction,
  table: "edge_certificates" | "edge_signing_keys",
  license: LicenseKeyRow,
  now: Date,
): Promise<number> {
  const unexpired = table === "edge_certificates" ? sql`and expire_time > ${now}` : sql``;
  const { rows } = await sql<{ count: bigint }>`
    select count(*) as count from ${sql.table(table)}
    where org_id = ${license.org_id} and license_key_id = ${license.id} and revoke_time is null ${unexpired}`.execute(
    tx,
  );
  return Number(rows[0]?.count ?? 0n);
}

/** Writes a licence. */
export async function insertLicense(tx: IdentityTransaction, row: Insertable<LicenseKeyTable>): Promise<LicenseKeyRow> {
  return await tx.insertInto("license_keys").values(row).returningAll().executeTakeFirstOrThrow();
}

/** Writes a partner key. */
export async function insertPartnerKey(
  tx: IdentityTransaction,
  row: Insertable<PartnerKeyTable>,
): Promise<PartnerKeyRow> {
  return await tx.insertInto("partner_keys").values(row).returningAll().executeTakeFirstOrThrow();
}

/** Writes a certificate. */
export async function insertEdgeCertificate(
  tx: IdentityTransaction,
  row: Insertable<EdgeCertificateTable>,
): Promise<EdgeCertificateRow> {
  return await tx.insertInto("edge_certificates").values(row).returningAll().executeTakeFirstOrThrow();
}

/** Writes a signing key; undefined where the key is known already, whoever's it is. */
export async function insertSigningKeyOfEdge(
  tx: IdentityTransaction,
  row: Insertable<EdgeSigningKeyTable>,
): Promise<EdgeSigningKeyRow | undefined> {
  return await tx
    .insertInto("edge_signing_keys")
    .values(row)
    .onConflict((conflict) => conflict.column("public_key").doNothing())
    .returningAll()
    .executeTakeFirst();
}

/** Finds the organisation's signing key by the key itself. */
export async function findByPublicKey(
  tx: IdentityTransaction,
  orgId: string,
  publicKey: Buffer,
): Promise<EdgeSigningKeyRow | undefined> {
  return await tx
    .selectFrom("edge_signing_keys")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("public_key", "=", publicKey)
    .executeTakeFirst();
}

/** Finds a signing key that is good, with licence and organisation; role system. */
export async function findGoodSigningKey(
  tx: IdentityTransaction,
  id: string,
  now: Date,
): Promise<EdgeSigningKeyRow | undefined> {
  return await tx
    .selectFrom("edge_signing_keys as k")
    .innerJoin("license_keys as l", (join) =>
      join.onRef("l.org_id", "=", "k.org_id").onRef("l.id", "=", "k.license_key_id"),
    )
    .innerJoin("organizations as o", "o.org_id", "k.org_id")
    .selectAll("k")
    .where("k.id", "=", id)
    .where("k.revoke_time", "is", null)
    .where("l.revoke_time", "is", null)
    .where("l.expire_time", ">", now)
    .where("o.delete_time", "is", null)
    .executeTakeFirst();
}

/** When the last licence of any of these organisations expires; role system. */
export async function lastLicenseExpiry(tx: IdentityTransaction, orgIds: readonly string[]): Promise<Date | undefined> {
  const row = await tx
    .selectFrom("license_keys")
    .select(({ fn }) => fn.max("expire_time").as("time"))
    .where("org_id", "in", orgIds)
    .executeTakeFirst();
  return row?.time ?? undefined;
}

/** What the deployment's own edge was given. */
export type EmbeddedEdgeRow = Selectable<EmbeddedEdgeTable>;

/** Notes a kit that is made for the deployment's own edge. */
export async function insertEmbeddedEdge(tx: IdentityTransaction, row: Insertable<EmbeddedEdgeTable>): Promise<void> {
  await tx.insertInto("embedded_edges").values(row).execute();
}

/** Forgets a kit. */
export async function deleteEmbeddedEdge(tx: IdentityTransaction, orgId: string, licenseKeyId: string): Promise<void> {
  await tx
    .deleteFrom("embedded_edges")
    .where("org_id", "=", orgId)
    .where("license_key_id", "=", licenseKeyId)
    .execute();
}

/** Kits of the deployment's own edge, newest first, at most a hundred, but for organisations under erasure; role system. */
export async function listEmbeddedEdges(tx: IdentityTransaction): Promise<EmbeddedEdgeRow[]> {
  return await tx
    .selectFrom("embedded_edges as e")
    .innerJoin("organizations as o", "o.org_id", "e.org_id")
    .selectAll("e")
    .where("o.delete_time", "is", null)
    .orderBy("e.provision_time", "desc")
    .limit(100)
    .execute();
}

/**
 * Finds a kit of the deployment's own edge of which everything is good: licence, certificate, signing key and
 * organisation; role system. Says when the first of them expires.
 */
export async function findGoodEmbeddedEdge(
  tx: IdentityTransaction,
  kit: { orgId: string; licenseKeyId: string; signingKeyId: string },
  now: Date,
): Promise<{ provision_time: Date; expire_time: Date } | undefined> {
  const { rows } = await sql<{ provision_time: Date; expire_time: Date }>`
    select e.provision_time, least(l.expire_time, c.expire_time) as expire_time
    from embedded_edges e
    join organizations o on o.org_id = e.org_id and o.delete_time is null
    join license_keys l on l.org_id = e.org_id and l.id = e.license_key_id and l.revoke_time is null
    join edge_certificates c on c.org_id = e.org_id and c.id = e.certificate_id and c.revoke_time is null
    join edge_signing_keys s on s.org_id = e.org_id and s.id = e.signing_key_id and s.revoke_time is null
    where e.org_id = ${kit.orgId} and e.license_key_id = ${kit.licenseKeyId} and e.signing_key_id = ${kit.signingKeyId}
      and l.expire_time > ${now} and c.expire_time > ${now}`.execute(tx);
  return rows[0];
}

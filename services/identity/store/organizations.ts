import { fail, Reason } from "@octomesh/mesh/errors";
import { type Insertable, type Selectable, sql } from "kysely";
import type { IdentityTransaction, OrganizationTable } from "../schema.ts";

/** A stored organisation. */
export type OrganizationRow = Selectable<OrganizationTable>;

/** Writes an organisation and its sandbox; role system. */
export async function insertOrganizations(
  tx: IdentityTransaction,
  rows: readonly Insertable<OrganizationTable>[],
): Promise<void> {
  await tx
    .insertInto("organizations")
    .values([...rows])
    .execute();
}

/** Whether there is any organisation at all, those under erasure included; role system. */
export async function hasOrganization(tx: IdentityTransaction): Promise<boolean> {
  const row = await tx.selectFrom("organizations").select("org_id").limit(1).executeTakeFirst();
  return row !== undefined;
}

/** Reads the organisation of the transaction. Throws RESOURCE_NOT_FOUND. */
export async function readOrganization(tx: IdentityTransaction, orgId: string): Promise<OrganizationRow> {
  const row = await tx.selectFrom("organizations").selectAll().where("org_id", "=", orgId).executeTakeFirst();
  if (row === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such organisation", { id: orgId });
  return row;
}

/**
 * Reads the organisation for a transaction that issues a credential, and keeps its deletion from beginning until the
 * transaction ends. Throws CREDENTIAL_REVOKED where it is being deleted: nothing is issued for it any more.
 */
export async function readForIssue(tx: IdentityTransaction, orgId: string): Promise<OrganizationRow> {
  const row = await readForRenewal(tx, orgId);
  if (row === undefined || row.delete_time !== null) {
    throw fail(Reason.CREDENTIAL_REVOKED, "the organisation is deleted", {});
  }
  return row;
}

/**
 * Reads the organisation for a transaction that renews a session, which owners may do even while it is being deleted.
 * Answers undefined where it is gone.
 */
export async function readForRenewal(tx: IdentityTransaction, orgId: string): Promise<OrganizationRow | undefined> {
  return await tx.selectFrom("organizations").selectAll().where("org_id", "=", orgId).forKeyShare().executeTakeFirst();
}

/** Reads and locks the organisation for a change that concerns it as a whole. Throws RESOURCE_NOT_FOUND. */
export async function lockOrganization(tx: IdentityTransaction, orgId: string): Promise<OrganizationRow> {
  const row = await tx
    .selectFrom("organizations")
    .selectAll()
    .where("org_id", "=", orgId)
    .forUpdate()
    .executeTakeFirst();
  if (row === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such organisation", { id: orgId });
  return row;
}

/** Changes name and settings, and counts the revision up. */
export async function updateOrganization(
  tx: IdentityTransaction,
  orgId: string,
  change: { displayName?: string; deviceTokenExpiryMs?: number; now: Date },
): Promise<OrganizationRow> {
  return await tx
    .updateTable("organizations")
    .set({
      ...(change.displayName === undefined ? {} : { display_name: change.displayName }),
      ...(change.deviceTokenExpiryMs === undefined ? {} : { device_token_expiry_ms: change.deviceTokenExpiryMs }),
      revision: sql`revision + 1`,
      update_time: change.now,
    })
    .where("org_id", "=", orgId)
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** The oldest organisation that is live and not being deleted; role system. */
export async function oldestLive(tx: IdentityTransaction, environment: number): Promise<OrganizationRow | undefined> {
  return await tx
    .selectFrom("organizations")
    .selectAll()
    .where("environment", "=", environment)
    .where("delete_time", "is", null)
    .orderBy("create_time")
    .orderBy("org_id")
    .limit(1)
    .executeTakeFirst();
}

/** Marks organisations as being deleted, once and for all; role system. */
export async function markDeleted(tx: IdentityTransaction, orgIds: readonly string[], now: Date): Promise<void> {
  await tx
    .updateTable("organizations")
    .set({ delete_time: now })
    .where("org_id", "in", orgIds)
    .where("delete_time", "is", null)
    .execute();
}

/** Live organisations whose deletion has begun and not ended, oldest first; role system. */
export async function listDeleted(tx: IdentityTransaction, environment: number): Promise<OrganizationRow[]> {
  return await tx
    .selectFrom("organizations")
    .selectAll()
    .where("delete_time", "is not", null)
    .where("environment", "=", environment)
    .orderBy("delete_time")
    .limit(100)
    .execute();
}

/** When the newest access token of any of these organisations was issued; role system. */
export async function lastIssueTime(tx: IdentityTransaction, orgIds: readonly string[]): Promise<Date | undefined> {
  const { rows } = await sql<{ time: Date | null }>`
    select greatest(
      (select max(issue_time) from sessions where org_id = any (${[...orgIds]})),
      (select max(issue_time) from device_credentials where org_id = any (${[...orgIds]}))
    ) as time`.execute(tx);
  return rows[0]?.time ?? undefined;
}

import { type Insertable, type Selectable, sql } from "kysely";
import type { DeviceCredentialTable, IdentityTransaction } from "../schema.ts";

/** A stored family of device credentials. */
export type DeviceCredentialRow = Selectable<DeviceCredentialTable>;

/** Writes a family. Answers false where the registration has one already. */
export async function insertDeviceCredential(
  tx: IdentityTransaction,
  row: Insertable<DeviceCredentialTable>,
): Promise<boolean> {
  const result = await tx
    .insertInto("device_credentials")
    .values(row)
    .onConflict((conflict) => conflict.columns(["org_id", "device_id", "registration_id"]).doNothing())
    .executeTakeFirst();
  return result.numInsertedOrUpdatedRows === 1n;
}

/** Reads and locks one family. */
export async function lockDeviceCredential(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
): Promise<DeviceCredentialRow | undefined> {
  return await tx
    .selectFrom("device_credentials")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .forUpdate()
    .executeTakeFirst();
}

/** Reads and locks every family of a device, revoked ones included, in the order of their ids. */
export async function lockDeviceCredentialsOf(
  tx: IdentityTransaction,
  orgId: string,
  deviceId: string,
): Promise<DeviceCredentialRow[]> {
  return await tx
    .selectFrom("device_credentials")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("device_id", "=", deviceId)
    .orderBy("id")
    .forUpdate()
    .execute();
}

/** Notes that a family's tokens were renewed. */
export async function updateDeviceCredential(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
  change: Partial<Pick<DeviceCredentialRow, "generation" | "rotate_time" | "expire_time">> &
    Pick<DeviceCredentialRow, "issue_time" | "access_expire_time">,
): Promise<void> {
  await tx.updateTable("device_credentials").set(change).where("org_id", "=", orgId).where("id", "=", id).execute();
}

/** Revokes families that are not revoked yet. */
export async function revokeDeviceCredentials(
  tx: IdentityTransaction,
  orgId: string,
  ids: readonly string[],
  revoke: { time: Date; cause: string },
): Promise<void> {
  if (ids.length === 0) return;
  await tx
    .updateTable("device_credentials")
    .set({ revoke_time: revoke.time, revoke_cause: revoke.cause })
    .where("org_id", "=", orgId)
    .where("id", "in", ids)
    .where("revoke_time", "is", null)
    .execute();
}

/** Makes whatever concerns the credentials of one device happen one after the other, until the transaction ends. */
export async function lockDevice(tx: IdentityTransaction, orgId: string, deviceId: string): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtextextended(${`device ${orgId} ${deviceId}`}, 0))`.execute(tx);
}

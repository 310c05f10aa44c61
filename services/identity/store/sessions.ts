import type { Insertable, Selectable } from "kysely";
import type { IdentityTransaction, SessionTable } from "../schema.ts";

/** A stored session. */
export type SessionRow = Selectable<SessionTable>;

/** Writes a session. */
export async function insertSession(tx: IdentityTransaction, row: Insertable<SessionTable>): Promise<void> {
  await tx.insertInto("sessions").values(row).execute();
}

/** Reads and locks a session. */
export async function lockSession(tx: IdentityTransaction, orgId: string, id: string): Promise<SessionRow | undefined> {
  return await tx
    .selectFrom("sessions")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .forUpdate()
    .executeTakeFirst();
}

/** Locks every session of a member that is not revoked, in the order of their ids. */
export async function lockSessionsOf(tx: IdentityTransaction, orgId: string, memberId: string): Promise<SessionRow[]> {
  return await tx
    .selectFrom("sessions")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("member_id", "=", memberId)
    .where("revoke_time", "is", null)
    .orderBy("id")
    .forUpdate()
    .execute();
}

/** Notes that a session's tokens were renewed. */
export async function updateSession(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
  change: Partial<Pick<SessionRow, "generation" | "rotate_time" | "expire_time">> & { issue_time: Date },
): Promise<void> {
  await tx.updateTable("sessions").set(change).where("org_id", "=", orgId).where("id", "=", id).execute();
}

/** Revokes sessions that are not revoked yet. */
export async function revokeSessions(
  tx: IdentityTransaction,
  orgId: string,
  ids: readonly string[],
  revoke: { time: Date; cause: string },
): Promise<void> {
  if (ids.length === 0) return;
  await tx
    .updateTable("sessions")
    .set({ revoke_time: revoke.time, revoke_cause: revoke.cause })
    .where("org_id", "=", orgId)
    .where("id", "in", ids)
    .where("revoke_time", "is", null)
    .execute();
}

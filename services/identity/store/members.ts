import { Member_State } from "@octomesh/proto/octomesh/identity/v1/member_pb";
import { type Insertable, type Selectable, sql } from "kysely";
import type { IdentityTransaction, MemberTable } from "../schema.ts";

/** A stored member. */
export type MemberRow = Selectable<MemberTable>;

/** Writes a member. Answers false where the e-mail address is taken. */
export async function insertMember(tx: IdentityTransaction, row: Insertable<MemberTable>): Promise<boolean> {
  const result = await tx
    .insertInto("members")
    .values(row)
    .onConflict((conflict) => conflict.columns(["org_id", "email"]).doNothing())
    .executeTakeFirst();
  return result.numInsertedOrUpdatedRows === 1n;
}

/** Reads a member by id or e-mail address. */
export async function findMember(
  tx: IdentityTransaction,
  orgId: string,
  key: { id: string } | { email: string },
): Promise<MemberRow | undefined> {
  const query = tx.selectFrom("members").selectAll().where("org_id", "=", orgId);
  return await ("id" in key ? query.where("id", "=", key.id) : query.where("email", "=", key.email)).executeTakeFirst();
}

/** A page of members, oldest first. */
export async function listMembers(
  tx: IdentityTransaction,
  orgId: string,
  page: { limit: number; after?: { time: Date; id: string } },
): Promise<MemberRow[]> {
  const { after } = page;
  let query = tx.selectFrom("members").selectAll().where("org_id", "=", orgId);
  if (after !== undefined) {
    query = query.where(({ eb, refTuple, tuple }) =>
      eb(refTuple("create_time", "id"), ">", tuple(after.time, after.id)),
    );
  }
  return await query.orderBy("create_time").orderBy("id").limit(page.limit).execute();
}

/** How many members hold a role and have signed in. */
export async function countActive(tx: IdentityTransaction, orgId: string, role: number): Promise<number> {
  const { count } = await tx
    .selectFrom("members")
    .select(({ fn }) => fn.countAll<bigint>().as("count"))
    .where("org_id", "=", orgId)
    .where("role", "=", role)
    .where("state", "=", Member_State.ACTIVE)
    .executeTakeFirstOrThrow();
  return Number(count);
}

/** Changes a member. */
export async function updateMember(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
  change: Partial<Pick<MemberRow, "role" | "state" | "invitation_digest" | "invitation_expire_time">> & {
    update_time: Date;
  },
): Promise<MemberRow> {
  return await tx
    .updateTable("members")
    .set(change)
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Accepts an invitation, once: answers undefined where its code has been used or replaced meanwhile. */
export async function acceptInvitation(
  tx: IdentityTransaction,
  orgId: string,
  id: string,
  digest: Buffer,
  now: Date,
): Promise<MemberRow | undefined> {
  return await tx
    .updateTable("members")
    .set({ state: Member_State.ACTIVE, invitation_digest: null, invitation_expire_time: null, update_time: now })
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .where("invitation_digest", "=", digest)
    .returningAll()
    .executeTakeFirst();
}

/**
 * Deletes a member's row, and the e-mail address with it: also from answers that are kept for repetitions, which then
 * answer nothing.
 */
export async function deleteMember(tx: IdentityTransaction, orgId: string, id: string): Promise<void> {
  await tx.deleteFrom("members").where("org_id", "=", orgId).where("id", "=", id).execute();
  await sql`update idempotency set answer = ''
    where org_id = ${orgId} and method = 'octomesh.identity.v1.MemberService/AddMember'
      and position(convert_to(${id}, 'UTF8') in answer) > 0`.execute(tx);
}

/** The organisation of an invitation, by the digest of its code; role system. */
export async function findInvitation(
  tx: IdentityTransaction,
  digest: Buffer,
): Promise<{ org_id: string; id: string } | undefined> {
  return await tx
    .selectFrom("members")
    .select(["org_id", "id"])
    .where("invitation_digest", "=", digest)
    .executeTakeFirst();
}

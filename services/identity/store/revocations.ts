import { type Insertable, type Selectable, sql } from "kysely";
import type { ControlSession } from "../control-session.ts";
import type { IdentityTransaction, RevocationTable } from "../schema.ts";

/** A stored revocation. */
export type RevocationRow = Selectable<RevocationTable>;

/** Writes a revocation, or moves an earlier one of the same subject forward, and answers what holds now. */
export async function upsertRevocation(
  tx: IdentityTransaction,
  row: Insertable<RevocationTable>,
): Promise<RevocationRow> {
  return await tx
    .insertInto("revocations")
    .values(row)
    .onConflict((conflict) =>
      conflict.columns(["org_id", "subject", "id"]).doUpdateSet({
        revoke_time: sql`greatest(revocations.revoke_time, excluded.revoke_time)`,
        forget_time: sql`greatest(revocations.forget_time, excluded.forget_time)`,
        digest: sql`coalesce(excluded.digest, revocations.digest)`,
      }),
    )
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** A page of the revocations that still matter, in the order of their key; role system. */
export async function listRevocations(
  tx: IdentityTransaction,
  now: Date,
  page: { limit: number; after?: Pick<RevocationRow, "org_id" | "subject" | "id"> },
): Promise<RevocationRow[]> {
  const { after } = page;
  let query = tx.selectFrom("revocations").selectAll().where("forget_time", ">", now);
  if (after !== undefined) {
    query = query.where(({ eb, refTuple, tuple }) =>
      eb(refTuple("org_id", "subject", "id"), ">", tuple(after.org_id, after.subject, after.id)),
    );
  }
  return await query.orderBy("org_id").orderBy("subject").orderBy("id").limit(page.limit).execute();
}

/** Forgets revocations that cannot matter any more; role system. Answers how many. */
export async function deleteForgotten(tx: IdentityTransaction, now: Date): Promise<bigint> {
  const result = await tx.deleteFrom("revocations").where("forget_time", "<=", now).executeTakeFirst();
  return result.numDeletedRows;
}

/** Who follows revocations, and how far it has come. */
export interface Subscriber {
  readonly id: string;
  /** The last cursor it acknowledged; "" before the first. */
  readonly cursor: string;
}

/** Begins or renews a subscriber's lease on the database's clock. An empty cursor keeps the one before. */
export async function renewSubscriber(
  session: ControlSession,
  subscriber: Subscriber & { peer: string },
  leaseMs: number,
): Promise<void> {
  const { id, peer, cursor } = subscriber;
  await session.query(
    `insert into revocation_subscribers as s (id, peer, cursor, lease_expire_time)
     values ($1, $2, $3, clock_timestamp() + $4 * interval '1 millisecond')
     on conflict (id) do update
     set cursor = case when excluded.cursor = '' then s.cursor else excluded.cursor end,
       lease_expire_time = excluded.lease_expire_time
     where s.peer = excluded.peer`,
    [id, peer, cursor, leaseMs],
  );
}

/** Ends a subscriber's lease. */
export async function deleteSubscriber(session: ControlSession, id: string, peer: string): Promise<void> {
  await session.query("delete from revocation_subscribers where id = $1 and peer = $2", [id, peer]);
}

/** Subscribers whose lease runs. */
export async function listSubscribers(session: ControlSession): Promise<Subscriber[]> {
  return await session.query<{ id: string; cursor: string }>(
    "select id, cursor from revocation_subscribers where lease_expire_time > clock_timestamp() order by id",
  );
}

/** Forgets subscribers that have been gone for an hour; role system. */
export async function deleteGoneSubscribers(tx: IdentityTransaction): Promise<void> {
  await tx
    .deleteFrom("revocation_subscribers")
    .where("lease_expire_time", "<", sql<Date>`clock_timestamp() - interval '1 hour'`)
    .execute();
}

/** The latest revocation of any of these subjects, by which a new token must be younger; undefined if there is none. */
export async function latestRevocation(
  tx: IdentityTransaction,
  orgId: string,
  subjects: readonly { subject: number; id: string }[],
): Promise<Date | undefined> {
  const row = await tx
    .selectFrom("revocations")
    .select(({ fn }) => fn.max("revoke_time").as("time"))
    .where("org_id", "=", orgId)
    .where(({ or, eb }) => or(subjects.map(({ subject, id }) => eb.and({ subject, id }))))
    .executeTakeFirst();
  return row?.time ?? undefined;
}

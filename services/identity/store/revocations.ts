import { type Insertable, type Selectable, sql } from "kysely";
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

/** Begins or renews a subscriber's lease on the database's clock; role system. An empty cursor keeps the one before. */
export async function renewSubscriber(
  tx: IdentityTransaction,
  subscriber: Subscriber & { peer: string },
  leaseMs: number,
): Promise<void> {
  const { id, peer, cursor } = subscriber;
  await tx
    .insertInto("revocation_subscribers")
    .values({ id, peer, cursor, lease_expire_time: sql`clock_timestamp() + make_interval(secs => ${leaseMs / 1000})` })
    .onConflict((conflict) =>
      conflict
        .column("id")
        .doUpdateSet({
          cursor: sql`case when excluded.cursor = '' then revocation_subscribers.cursor else excluded.cursor end`,
          lease_expire_time: sql`excluded.lease_expire_time`,
        })
        .where("revocation_subscribers.peer", "=", sql<string>`excluded.peer`),
    )
    .execute();
}

/** Ends a subscriber's lease; role system. */
export async function deleteSubscriber(tx: IdentityTransaction, id: string, peer: string): Promise<void> {
  await tx.deleteFrom("revocation_subscribers").where("id", "=", id).where("peer", "=", peer).execute();
}

/** Subscribers whose lease runs; role system. */
export async function listSubscribers(tx: IdentityTransaction): Promise<Subscriber[]> {
  return await tx
    .selectFrom("revocation_subscribers")
    .select(["id", "cursor"])
    .where("lease_expire_time", ">", sql<Date>`clock_timestamp()`)
    .orderBy("id")
    .execute();
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

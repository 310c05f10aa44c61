import { sql } from "kysely";
import type { IdentityTransaction } from "../schema.ts";

/** Makes set-ups, and starts that make set-up codes, wait for each other until the transaction ends; role system. */
export async function lockSetUp(tx: IdentityTransaction): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtextextended('octomesh identity set-up', 0))`.execute(tx);
}

/** Whether a code is good. */
export async function hasSetUpCode(tx: IdentityTransaction, digest: Buffer): Promise<boolean> {
  const row = await tx.selectFrom("set_up_codes").select("digest").where("digest", "=", digest).executeTakeFirst();
  return row !== undefined;
}

/** Adds a code. */
export async function insertSetUpCode(tx: IdentityTransaction, digest: Buffer, now: Date): Promise<void> {
  await tx.insertInto("set_up_codes").values({ digest, create_time: now }).execute();
}

/** Ends every code. */
export async function deleteSetUpCodes(tx: IdentityTransaction): Promise<void> {
  await tx.deleteFrom("set_up_codes").execute();
}

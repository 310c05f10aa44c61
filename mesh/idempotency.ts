import { timingSafeEqual } from "node:crypto";
import { sql, type Transaction } from "kysely";
import type { Call } from "./call.ts";
import type { Database } from "./database.ts";
import { fail, Reason } from "./errors.ts";

/** The answer of a mutation, and whether it is the stored one of an earlier call. */
export interface OnceAnswer {
  /** The serialised response message. */
  answer: Uint8Array;
  replayed: boolean;
}

const lifetimeHours = 24;
const maxAnswerBytes = 1024 * 1024;

/**
 * Runs a mutation once per organisation, caller, method and request id, for 24 hours (DESIGN 8.15). A repetition gets
 * the stored answer; its audit draft is skipped, for it changed nothing. Two at the same time: the second waits for the
 * first's transaction. Without a request id ("") it simply runs.
 *
 * The answer is stored, so it must hold no secret: store the resource without it and say so on a replay.
 *
 * @param tx a `write` transaction of `call`
 * @param requestId the request's `request_id`
 * @param digest SHA-256 of the request as serialised, 32 bytes; REQUEST_ID_REUSED when it is not the first one's
 * @param run makes the change in `tx` and answers the serialised response, up to 1 MiB
 */
export async function once<DB>(
  tx: Transaction<DB>,
  call: Call,
  method: string,
  requestId: string,
  digest: Uint8Array,
  run: () => Promise<Uint8Array>,
): Promise<OnceAnswer> {
  if (requestId === "") return { answer: await run(), replayed: false };
  if (digest.length !== 32) throw new TypeError("a request's digest is 32 bytes");
  const caller = `${call.caller.kind}:${call.caller.id}`;
  // The row is claimed before the work: a second call blocks on it until this transaction has ended.
  const claimed = await sql`
    insert into idempotency as i (org_id, caller, method, request_id, digest, answer)
    values (${call.orgId}, ${caller}, ${method}, ${requestId}, ${Buffer.from(digest)}, '')
    on conflict (org_id, caller, method, request_id) do update
    set digest = excluded.digest, answer = '', time = clock_timestamp()
    where i.time < clock_timestamp() - ${lifetimeHours} * interval '1 hour'
    returning 1 as claimed`.execute(tx);
  if (claimed.rows.length === 0) {
    const { rows } = await sql<{ digest: Buffer; answer: Buffer }>`
      select digest, answer from idempotency
      where org_id = ${call.orgId} and caller = ${caller} and method = ${method} and request_id = ${requestId}`.execute(
      tx,
    );
    const [stored] = rows;
    if (stored === undefined || !timingSafeEqual(stored.digest, digest)) {
      throw fail(Reason.REQUEST_ID_REUSED, "this request id was used for another request", { request_id: requestId });
    }
    call.audit?.skip("replay");
    return { answer: new Uint8Array(stored.answer), replayed: true };
  }
  const answer = await run();
  if (answer.length > maxAnswerBytes) throw new RangeError(`an answer to keep has at most ${maxAnswerBytes} bytes`);
  await sql`
    update idempotency set answer = ${Buffer.from(answer)}
    where org_id = ${call.orgId} and caller = ${caller} and method = ${method} and request_id = ${requestId}`.execute(
    tx,
  );
  return { answer, replayed: false };
}

/** Deletes up to `limit` (default 10,000) answers past their 24 hours. Answers how many; run it under a lease. */
export async function trimIdempotency<DB>(database: Database<DB>, limit = 10_000): Promise<number> {
  return await database.system(async (tx) => {
    const { numAffectedRows } = await sql`
      delete from idempotency where (org_id, caller, method, request_id) in (
        select org_id, caller, method, request_id from idempotency
        where time < clock_timestamp() - ${lifetimeHours} * interval '1 hour' order by time limit ${limit}
      )`.execute(tx);
    return Number(numAffectedRows ?? 0n);
  });
}

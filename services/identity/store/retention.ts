import { sql } from "kysely";
import type { IdentityTransaction } from "../schema.ts";

/** How many rows one statement deletes at most, so that none holds its locks for long. */
const batchRows = 5_000;

/** Tables whose rows are kept for a while after they expired. */
export type ExpiringTable = "sessions" | "device_credentials" | "read_tokens" | "edge_certificates";

/** Deletes one batch of rows that expired before a time, with their refresh tokens; role system. Answers how many. */
export async function deleteExpired(tx: IdentityTransaction, table: ExpiringTable, before: Date): Promise<number> {
  const { rows } = await sql<{ org_id: string; id: string }>`
    delete from ${sql.table(table)} where (org_id, id) in (
      select org_id, id from ${sql.table(table)} where expire_time < ${before} limit ${batchRows}
    ) returning org_id, id`.execute(tx);
  if (rows.length > 0 && (table === "sessions" || table === "device_credentials")) {
    await sql`
      delete from refresh_tokens using unnest(${rows.map((row) => row.org_id)}::text[],
        ${rows.map((row) => row.id)}::text[]) as gone (org_id, id)
      where refresh_tokens.org_id = gone.org_id and refresh_tokens.family_id = gone.id`.execute(tx);
  }
  return rows.length;
}

import { fail, Reason } from "@octomesh/mesh/errors";
import type { Selectable } from "kysely";
import { sql } from "kysely";
import type { Tables, Tx } from "./tables.ts";

/** An artifact as it is stored. */
export type ArtifactRow = Selectable<Tables["artifacts"]>;
/** An upload as it is stored. */
export type UploadRow = Selectable<Tables["artifact_uploads"]>;

/** How many uploads an organisation may have open at a time. */
export const maxOpenUploads = 100;

/** Finds an artifact. Refuses with RESOURCE_NOT_FOUND. */
export async function getArtifact(tx: Tx, orgId: string, id: string): Promise<ArtifactRow> {
  const row = await tx
    .selectFrom("artifacts")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .executeTakeFirst();
  if (row === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, `there is no artifact ${id}`, { type: "artifact", id });
  return row;
}

/** Finds an organisation's artifact by its digest, and notes that somebody asked for it. */
export async function touchArtifact(
  tx: Tx,
  orgId: string,
  sha256: Buffer,
  time: Date,
): Promise<ArtifactRow | undefined> {
  return await tx
    .updateTable("artifacts")
    .set({ touch_time: time })
    .where("org_id", "=", orgId)
    .where("sha256", "=", sha256)
    .returningAll()
    .executeTakeFirst();
}

/**
 * Finds the upload that is open for these bytes, or makes one: whoever sends the same bytes again goes on where the
 * upload stands. Refuses with QUOTA_EXCEEDED beyond `maxOpenUploads`. Answers whether it was made.
 */
export async function openUpload(
  tx: Tx,
  upload: {
    orgId: string;
    id: string;
    sha256: Buffer;
    sizeBytes: bigint;
    artifactId?: string;
    time: Date;
    expireTime: Date;
  },
): Promise<{ row: UploadRow; made: boolean }> {
  const { orgId, sha256, sizeBytes, time, expireTime, artifactId } = upload;
  const values = {
    org_id: orgId,
    id: upload.id,
    sha256,
    size_bytes: sizeBytes,
    create_time: time,
    expire_time: expireTime,
  };
  if (artifactId !== undefined) {
    const done = await tx
      .updateTable("artifact_uploads")
      .set({ expire_time: expireTime })
      .where("org_id", "=", orgId)
      .where("id", "=", ({ selectFrom }) =>
        selectFrom("artifact_uploads as known")
          .select("known.id")
          .where("known.org_id", "=", orgId)
          .where("known.artifact_id", "=", artifactId)
          .where("known.expire_time", ">", time)
          .limit(1),
      )
      .returningAll()
      .executeTakeFirst();
    if (done !== undefined) return { row: done, made: false };
    const row = await tx
      .insertInto("artifact_uploads")
      .values({ ...values, artifact_id: artifactId, stored_bytes: sizeBytes, verified: true })
      .returningAll()
      .executeTakeFirstOrThrow();
    return { row, made: true };
  }
  const open = await tx
    .updateTable("artifact_uploads")
    .set({ expire_time: expireTime })
    .where("org_id", "=", orgId)
    .where("sha256", "=", sha256)
    .where("size_bytes", "=", sizeBytes)
    .where("artifact_id", "is", null)
    .where("expire_time", ">", time)
    .returningAll()
    .executeTakeFirst();
  if (open !== undefined) return { row: open, made: false };
  const { count } = await tx
    .selectFrom("artifact_uploads")
    .select(sql<bigint>`count(*)`.as("count"))
    .where("org_id", "=", orgId)
    .where("artifact_id", "is", null)
    .executeTakeFirstOrThrow();
  if (count >= BigInt(maxOpenUploads)) {
    const message = `the organisation has ${maxOpenUploads} uploads open: finish one, or wait until one lapses`;
    throw fail(Reason.QUOTA_EXCEEDED, message, { limit: String(maxOpenUploads) });
  }
  // Somebody who was faster, or an upload that has lapsed and waits for its clean-up, is taken over.
  const row = await tx
    .insertInto("artifact_uploads")
    .values({ ...values, artifact_id: null })
    .onConflict((conflict) =>
      conflict
        .columns(["org_id", "sha256", "size_bytes"])
        .where("artifact_id", "is", null)
        .doUpdateSet({ expire_time: expireTime }),
    )
    .returningAll()
    .executeTakeFirstOrThrow();
  return { row, made: row.id === upload.id };
}

/** Finds an upload that has not lapsed, locked if asked for. Refuses with RESOURCE_NOT_FOUND. */
export async function getUpload(tx: Tx, orgId: string, id: string, now: Date, lock = false): Promise<UploadRow> {
  const query = tx
    .selectFrom("artifact_uploads")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .where("expire_time", ">", now);
  const row = await (lock ? query.forUpdate() : query).executeTakeFirst();
  if (row === undefined) {
    throw fail(Reason.RESOURCE_NOT_FOUND, `there is no upload ${id}, or it has lapsed`, { type: "upload", id });
  }
  return row;
}

/** The version of an upload's row: another one after every change, whoever made it. */
export async function uploadVersion(tx: Tx, orgId: string, id: string): Promise<string> {
  const { version } = await tx
    .selectFrom("artifact_uploads")
    .select(sql<string>`xmin::text`.as("version"))
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .executeTakeFirstOrThrow();
  return version;
}

/** Notes how far an upload has come. */
export async function advanceUpload(
  tx: Tx,
  orgId: string,
  id: string,
  change: { storedBytes: bigint; expireTime: Date },
): Promise<UploadRow> {
  return await tx
    .updateTable("artifact_uploads")
    .set({ stored_bytes: change.storedBytes, expire_time: change.expireTime, verified: false })
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Notes that a full upload has the digest that was announced. */
export async function markUploadVerified(tx: Tx, orgId: string, id: string): Promise<void> {
  await tx
    .updateTable("artifact_uploads")
    .set({ verified: true })
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .whereRef("stored_bytes", "=", "size_bytes")
    .execute();
}

/** Sets an upload back to its beginning; bytes that are part of an artifact stay. */
export async function resetUpload(tx: Tx, orgId: string, id: string): Promise<void> {
  await tx
    .updateTable("artifact_uploads")
    .set({ stored_bytes: 0n, verified: false })
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .where("artifact_id", "is", null)
    .execute();
}

/**
 * Keeps others from making or removing the blob of a digest until the transaction ends. PostgreSQL's advisory locks
 * are 64 bits wide: two digests that share one only wait for each other.
 */
export async function lockBlob(tx: Tx, orgId: string, sha256: Buffer): Promise<void> {
  const name = `${orgId}/${sha256.toString("hex")}`;
  await sql`select pg_advisory_xact_lock(hashtextextended(${name}, 0))`.execute(tx);
}

/** Turns a verified upload into an artifact, or joins it to the one that the organisation has of these bytes. */
export async function completeUpload(tx: Tx, upload: UploadRow, artifactId: string, time: Date): Promise<ArtifactRow> {
  const { org_id, sha256, size_bytes } = upload;
  const artifact = await tx
    .insertInto("artifacts")
    .values({ org_id, id: artifactId, sha256, size_bytes, create_time: time, touch_time: time })
    .onConflict((conflict) => conflict.columns(["org_id", "sha256"]).doUpdateSet({ touch_time: time }))
    .returningAll()
    .executeTakeFirstOrThrow();
  await tx
    .updateTable("artifact_uploads")
    .set({ artifact_id: artifact.id })
    .where("org_id", "=", org_id)
    .where("id", "=", upload.id)
    .execute();
  await tx.deleteFrom("blob_garbage").where("org_id", "=", org_id).where("sha256", "=", sha256).execute();
  return artifact;
}

/** Takes up to `limit` lapsed uploads of all organisations out of the table (role system). */
export async function deleteLapsedUploads(
  tx: Tx,
  now: Date,
  limit: number,
): Promise<{ orgId: string; uploadId: string; hasBytes: boolean }[]> {
  const rows = await tx
    .deleteFrom("artifact_uploads")
    .where(({ eb, selectFrom, refTuple }) =>
      eb(
        refTuple("org_id", "id"),
        "in",
        selectFrom("artifact_uploads as lapsed")
          .select(["lapsed.org_id", "lapsed.id"])
          .where("lapsed.expire_time", "<=", now)
          .limit(limit)
          .$asTuple("org_id", "id"),
      ),
    )
    .where("expire_time", "<=", now)
    .returning(["org_id", "id", "artifact_id"])
    .execute();
  return rows.map((row) => ({ orgId: row.org_id, uploadId: row.id, hasBytes: row.artifact_id === null }));
}

/** Takes artifacts that nothing refers to, and nobody asked for since `before`, out of the table (role system). */
export async function deleteUnusedArtifacts(tx: Tx, before: Date, now: Date, limit: number): Promise<number> {
  const { rows } = await sql<{ org_id: string }>`
    with unused as (
      delete from artifacts a
      where (a.org_id, a.id) in (
        select u.org_id, u.id from artifacts u
        where u.touch_time < ${before}
          and not exists (select from model_versions v where v.org_id = u.org_id and v.artifact_id = u.id)
          and not exists (select from artifact_uploads p where p.org_id = u.org_id and p.artifact_id = u.id)
        limit ${limit}
      ) and a.touch_time < ${before}
      returning a.org_id, a.sha256
    )
    insert into blob_garbage (org_id, sha256, create_time) select org_id, sha256, ${now} from unused
    on conflict (org_id, sha256) do update set create_time = excluded.create_time
    returning org_id`.execute(tx);
  return rows.length;
}

/** Digests whose blobs are to be removed (role system). */
export async function listBlobGarbage(tx: Tx, limit: number): Promise<{ orgId: string; sha256: Buffer }[]> {
  const rows = await tx.selectFrom("blob_garbage").select(["org_id", "sha256"]).limit(limit).execute();
  return rows.map((row) => ({ orgId: row.org_id, sha256: row.sha256 }));
}

/** Takes one digest off the list (role system, blob locked). Answers whether its blob may go: no artifact has it again. */
export async function takeBlobGarbage(tx: Tx, orgId: string, sha256: Buffer): Promise<boolean> {
  const taken = await tx
    .deleteFrom("blob_garbage")
    .where("org_id", "=", orgId)
    .where("sha256", "=", sha256)
    .returning("org_id")
    .executeTakeFirst();
  if (taken === undefined) return false;
  const artifact = await tx
    .selectFrom("artifacts")
    .select("id")
    .where("org_id", "=", orgId)
    .where("sha256", "=", sha256)
    .executeTakeFirst();
  return artifact === undefined;
}

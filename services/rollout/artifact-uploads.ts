import { timingSafeEqual } from "node:crypto";
import type { Call } from "@octomesh/mesh/call";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import type { BlobKey, UploadKey } from "./blob-store.ts";
import type { Dependencies } from "./dependencies.ts";
import {
  type ArtifactRow,
  advanceUpload,
  completeUpload,
  getArtifact,
  getUpload,
  lockBlob,
  markUploadVerified,
  openUpload,
  resetUpload,
  touchArtifact,
  type UploadRow,
  uploadVersion,
} from "./store/artifacts.ts";

/** How large a chunk may be at most: 8 MiB. */
export const maxChunkBytes = 8 * 1024 * 1024;

/** When an upload lapses if nothing more comes: after 24 hours. */
export const uploadLifetimeMs = 24 * 60 * 60_000;

/** An upload, and its artifact once it has one. */
export interface UploadView {
  readonly upload: UploadRow;
  readonly artifact?: ArtifactRow;
}

type UploadDependencies = Pick<Dependencies, "database" | "blobs" | "digests" | "clock">;

/** Begins an upload, goes on with the one that is open for these bytes, or finds the artifact there already. */
export async function beginUpload(
  deps: UploadDependencies,
  call: Call,
  announced: { sha256: Buffer; sizeBytes: bigint },
): Promise<UploadView> {
  const { orgId } = call;
  const { sha256, sizeBytes } = announced;
  return await deps.database.write(call, async (tx) => {
    const nowMs = deps.clock.now();
    const time = new Date(nowMs);
    const expireTime = new Date(nowMs + uploadLifetimeMs);
    const artifact = await touchArtifact(tx, orgId, sha256, time);
    if (artifact !== undefined && artifact.size_bytes !== sizeBytes) {
      const message = `size_bytes: the bytes of this digest are ${artifact.size_bytes}, not ${sizeBytes}`;
      throw fail(Reason.VALIDATION_FAILED, message, { field: "size_bytes", size_bytes: String(artifact.size_bytes) });
    }
    const id = newId("upl", nowMs);
    const { row, made } = await openUpload(tx, {
      orgId,
      id,
      sha256,
      sizeBytes,
      time,
      expireTime,
      ...(artifact === undefined ? {} : { artifactId: artifact.id }),
    });
    call.audit?.resource("artifact_upload", row.id);
    call.audit?.note("sha256", sha256.toString("hex"));
    if (!made) call.audit?.skip("unchanged");
    return { upload: row, ...(artifact === undefined ? {} : { artifact }) };
  });
}

/** Finds an upload. */
export async function findUpload(deps: UploadDependencies, call: Call, id: string): Promise<UploadView> {
  const { orgId } = call;
  return await deps.database.read(orgId, async (tx) => {
    const upload = await getUpload(tx, orgId, id, new Date(deps.clock.now()));
    if (upload.artifact_id === null) return { upload };
    return { upload, artifact: await getArtifact(tx, orgId, upload.artifact_id) };
  });
}

/**
 * Appends a chunk at the offset that the upload has come to, and answers the upload once the chunk is durable. The last
 * chunk has the digest checked. Refuses with OFFSET_MISMATCH (whose metadata names the right offset), STORAGE_FULL,
 * DIGEST_MISMATCH (the bytes are dropped and the upload is back at 0), and VALIDATION_FAILED for more bytes than were
 * announced. Chunks that come at the same time are put in order by the upload's row: one is stored, the other refused.
 */
export async function appendChunk(
  deps: UploadDependencies,
  call: Call,
  id: string,
  offset: number,
  bytes: Uint8Array,
): Promise<UploadRow> {
  const { orgId } = call;
  const { upload, version } = await deps.database.write(unaudited(call), async (tx) => {
    const nowMs = deps.clock.now();
    const row = await getUpload(tx, orgId, id, new Date(nowMs), true);
    const stored = Number(row.stored_bytes);
    if (offset !== stored) throw offsetMismatch(row);
    if (offset + bytes.length > Number(row.size_bytes)) {
      const message = `the upload has ${row.size_bytes} bytes; ${offset} are stored, so ${bytes.length} more are too many`;
      throw fail(Reason.VALIDATION_FAILED, message, { offset: String(stored), size_bytes: String(row.size_bytes) });
    }
    if (bytes.length === 0) return { upload: row };
    const before = await uploadVersion(tx, orgId, id);
    await deps.blobs.append({ orgId, uploadId: id }, offset, bytes);
    const advanced = await advanceUpload(tx, orgId, id, {
      storedBytes: row.stored_bytes + BigInt(bytes.length),
      expireTime: new Date(nowMs + uploadLifetimeMs),
    });
    return { upload: advanced, version: { before, after: await uploadVersion(tx, orgId, id) } };
  });
  if (version !== undefined) deps.digests.advance(id, offset, bytes, version);
  if (upload.stored_bytes === upload.size_bytes && !upload.verified) {
    await verify(deps, call, upload, version && deps.digests.finish(id, Number(upload.size_bytes)));
  }
  return upload;
}

/** Verifies the digest of a full upload, unless its last chunk has, and turns it into an artifact. Repeatable. */
export async function finishUpload(deps: UploadDependencies, call: Call, id: string): Promise<ArtifactRow> {
  const { orgId } = call;
  const found = await findUpload(deps, call, id);
  if (found.artifact !== undefined) {
    call.audit?.skip("unchanged");
    return found.artifact;
  }
  const { upload } = found;
  if (upload.stored_bytes !== upload.size_bytes) throw offsetMismatch(upload);
  if (!upload.verified) await verify(deps, call, upload);
  const artifact = await deps.database.write(call, async (tx) => {
    const nowMs = deps.clock.now();
    const row = await getUpload(tx, orgId, id, new Date(nowMs), true);
    if (row.artifact_id !== null) {
      call.audit?.skip("unchanged");
      return await getArtifact(tx, orgId, row.artifact_id);
    }
    if (!row.verified) throw offsetMismatch(row);
    await lockBlob(tx, orgId, row.sha256);
    await deps.blobs.commit(uploadKeyOf(row), blobKeyOf(row), Number(row.size_bytes));
    const made = await completeUpload(tx, row, newId("art", nowMs), new Date(nowMs));
    call.audit?.resource("artifact", made.id);
    call.audit?.note("sha256", row.sha256.toString("hex"));
    call.audit?.note("size_bytes", String(row.size_bytes));
    return made;
  });
  deps.digests.drop(id);
  return artifact;
}

/** Compares the digest of a full upload, `known` if every byte came by here just now and else read, with the announced. */
async function verify(deps: UploadDependencies, call: Call, upload: UploadRow, known?: Buffer): Promise<void> {
  const { org_id: orgId, id } = upload;
  const sizeBytes = Number(upload.size_bytes);
  const digest = known ?? (await deps.blobs.digest(uploadKeyOf(upload), blobKeyOf(upload), sizeBytes, call.signal));
  const matches = timingSafeEqual(digest, upload.sha256);
  await deps.database.write(unaudited(call), async (tx) => {
    if (matches) {
      await markUploadVerified(tx, orgId, id);
      return;
    }
    const row = await getUpload(tx, orgId, id, new Date(deps.clock.now()), true);
    if (row.artifact_id !== null) return;
    await deps.blobs.discard(uploadKeyOf(row));
    await resetUpload(tx, orgId, id);
  });
  if (matches) return;
  deps.digests.drop(id);
  const announced = upload.sha256.toString("hex");
  throw fail(Reason.DIGEST_MISMATCH, "the bytes do not have the digest that was announced; they were dropped", {
    announced,
    received: digest.toString("hex"),
  });
}

/** A part of a larger action: what is audited is the artifact that comes of it. */
function unaudited(call: Call): Call {
  return { ...call, audit: undefined, auditExempt: true };
}

function offsetMismatch(row: UploadRow) {
  const message = `the upload goes on at byte ${row.stored_bytes} of ${row.size_bytes}`;
  return fail(Reason.OFFSET_MISMATCH, message, {
    id: row.id,
    offset: String(row.stored_bytes),
    size_bytes: String(row.size_bytes),
  });
}

function uploadKeyOf(row: UploadRow): UploadKey {
  return { orgId: row.org_id, uploadId: row.id };
}

function blobKeyOf(row: UploadRow): BlobKey {
  return { orgId: row.org_id, sha256: row.sha256.toString("hex") };
}

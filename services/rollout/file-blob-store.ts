import { createHash } from "node:crypto";
import { access, constants, type FileHandle, mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { BlobKey, BlobStore, UploadKey } from "./blob-store.ts";

const orgPattern = /^org_[a-z0-9]{1,64}$/;
const uploadPattern = /^upl_[a-z2-7]{26}$/;
const sha256Pattern = /^[0-9a-f]{64}$/;
/** How much of a file is read at a time. */
const readBytes = 256 * 1024;

/**
 * Keeps blobs as files: `<root>/blobs/<org>/<sha256>`, and uploads under way as `<root>/uploads/<org>/<upload>`. Bytes
 * are flushed to the disk (fsync) before they are acknowledged, and a blob appears by rename: whole or not at all. For
 * one machine, or several that share a file system with the same guarantees.
 *
 * @param root made if it is missing, readable by this user alone; an error that names OCTOMESH_STATE_DIR if it cannot be written
 */
export async function openFileBlobStore(root: string): Promise<BlobStore> {
  const blobsRoot = join(root, "blobs");
  const uploadsRoot = join(root, "uploads");
  for (const folder of [blobsRoot, uploadsRoot]) {
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 });
      await access(folder, constants.R_OK | constants.W_OK | constants.X_OK);
    } catch (error) {
      throw new Error(`OCTOMESH_STATE_DIR: ${folder} cannot be written (${codeOf(error)})`, { cause: error });
    }
  }

  const blobFolder = (orgId: string) => join(blobsRoot, checked(orgId, orgPattern));
  const uploadFolder = (orgId: string) => join(uploadsRoot, checked(orgId, orgPattern));
  const blobPath = ({ orgId, sha256 }: BlobKey) => join(blobFolder(orgId), checked(sha256, sha256Pattern));
  const uploadPath = ({ orgId, uploadId }: UploadKey) => join(uploadFolder(orgId), checked(uploadId, uploadPattern));

  async function count(orgId: string): Promise<{ blobs: number; uploads: number }> {
    const [blobs, uploads] = await Promise.all([filesIn(blobFolder(orgId)), filesIn(uploadFolder(orgId))]);
    return { blobs, uploads };
  }

  return {
    append: (upload, offset, bytes) =>
      storing(async () => {
        const path = uploadPath(upload);
        if (offset === 0) await makeFolder(uploadsRoot, uploadFolder(upload.orgId));
        const file = await open(path, offset === 0 ? "a+" : "r+", 0o600).then(async (made) => {
          if (offset > 0) return made;
          // "a+" makes the file without emptying it; writing at a position needs "r+".
          await made.close();
          return await open(path, "r+");
        });
        try {
          await writeAll(file, offset, bytes);
          await file.sync();
        } catch (error) {
          // Gives back what the failed write took; what was acknowledged lies before the offset.
          await file.truncate(offset).catch(() => {});
          throw error;
        } finally {
          await file.close();
        }
        if (offset === 0) await syncFolder(uploadFolder(upload.orgId));
      }),

    async digest(upload, blob, sizeBytes, signal) {
      const file = (await openIfThere(uploadPath(upload))) ?? (await openIfThere(blobPath(blob)));
      if (file === undefined) throw new Error(`upload ${upload.uploadId} has no bytes`);
      const hash = createHash("sha256");
      try {
        const buffer = Buffer.allocUnsafe(readBytes);
        for (let position = 0; position < sizeBytes; ) {
          signal?.throwIfAborted();
          const wanted = Math.min(buffer.length, sizeBytes - position);
          const { bytesRead } = await file.read(buffer, 0, wanted, position);
          if (bytesRead === 0) throw new Error(`upload ${upload.uploadId} ends at ${position} of ${sizeBytes} bytes`);
          hash.update(buffer.subarray(0, bytesRead));
          position += bytesRead;
        }
      } finally {
        await file.close();
      }
      return hash.digest();
    },

    commit: (upload, blob, sizeBytes) =>
      storing(async () => {
        const file = await openIfThere(uploadPath(upload), "r+");
        if (file === undefined) {
          // A commit that was interrupted after its rename left the blob.
          const made = await openIfThere(blobPath(blob));
          if (made === undefined) throw new Error(`upload ${upload.uploadId} has no bytes`);
          await made.close();
          return;
        }
        try {
          await file.truncate(sizeBytes);
          await file.sync();
        } finally {
          await file.close();
        }
        await makeFolder(blobsRoot, blobFolder(blob.orgId));
        await rename(uploadPath(upload), blobPath(blob));
        await syncFolder(blobFolder(blob.orgId));
      }),

    async discard(upload) {
      await rm(uploadPath(upload), { force: true });
    },

    async open(blob, range) {
      const file = await openIfThere(blobPath(blob));
      return file?.createReadStream({
        highWaterMark: readBytes,
        ...(range === undefined ? {} : { start: range.first, end: range.last }),
      });
    },

    async remove(blob) {
      await rm(blobPath(blob), { force: true });
    },

    async erase(orgId) {
      const erased = await count(orgId);
      await rm(uploadFolder(orgId), { recursive: true, force: true });
      await rm(blobFolder(orgId), { recursive: true, force: true });
      await Promise.all([syncFolder(uploadsRoot), syncFolder(blobsRoot)]);
      return erased;
    },

    count,
  };
}

/** No path is ever made of a part that could lead elsewhere. */
function checked(part: string, pattern: RegExp): string {
  if (!pattern.test(part)) throw new TypeError("not a part of a blob's path");
  return part;
}

async function storing<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const code = codeOf(error);
    if (code === "ENOSPC" || code === "EDQUOT" || code === "EFBIG") {
      throw fail(
        Reason.STORAGE_FULL,
        "there is no room left for these bytes; what was stored before is kept",
        {},
        {
          cause: error,
          retryAfterMs: 60_000,
        },
      );
    }
    throw error;
  }
}

async function writeAll(file: FileHandle, offset: number, bytes: Uint8Array): Promise<void> {
  for (let written = 0; written < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, written, bytes.length - written, offset + written);
    written += bytesWritten;
  }
}

async function openIfThere(path: string, flags: "r" | "r+" = "r"): Promise<FileHandle | undefined> {
  try {
    return await open(path, flags);
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

async function makeFolder(parent: string, folder: string): Promise<void> {
  const made = await mkdir(folder, { recursive: true, mode: 0o700 });
  if (made !== undefined) await syncFolder(parent);
}

/** A new or renamed file is durable once its folder is. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function filesIn(folder: string): Promise<number> {
  try {
    return (await readdir(folder)).length;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return 0;
    throw error;
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";
}

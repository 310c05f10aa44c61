import type { Readable } from "node:stream";
import type { ByteRange } from "./byte-range.ts";

/** Which upload's bytes. */
export interface UploadKey {
  readonly orgId: string;
  readonly uploadId: string;
}

/** Which blob. */
export interface BlobKey {
  readonly orgId: string;
  /** SHA-256 of the bytes, 64 lower-case hexadecimal digits. */
  readonly sha256: string;
}

/**
 * Where artifacts' bytes are kept: a file system here, an object store where a deployment has one. Every implementation
 * passes blob-store.suite.ts.
 *
 * A promise that resolves means the change is on stable storage. Callers put concurrent changes of one upload, and of
 * one blob, in order (by row locks), and remember how far an upload has come: the store need not.
 */
export interface BlobStore {
  /**
   * Stores `bytes` (up to 8 MiB) at `offset` of an upload. Whatever lay beyond `offset` was never acknowledged and may
   * be overwritten or dropped. Refuses with STORAGE_FULL, and keeps all bytes before `offset`, when there is no room.
   */
  append(upload: UploadKey, offset: number, bytes: Uint8Array): Promise<void>;
  /** SHA-256 of the first `sizeBytes` of an upload, or of the blob if `commit` has already made it one. */
  digest(upload: UploadKey, blob: BlobKey, sizeBytes: number, signal?: AbortSignal): Promise<Buffer>;
  /** Makes the first `sizeBytes` of a verified upload a blob, in one step. Repeating it is safe. */
  commit(upload: UploadKey, blob: BlobKey, sizeBytes: number): Promise<void>;
  /** Drops an upload's bytes. Repeating it is safe. */
  discard(upload: UploadKey): Promise<void>;
  /** Opens a blob for reading, whole or in part; undefined if there is none. The caller ends or destroys the stream. */
  open(blob: BlobKey, range?: ByteRange): Promise<Readable | undefined>;
  /** Drops a blob. Downloads under way end well. Repeating it is safe. */
  remove(blob: BlobKey): Promise<void>;
  /** Drops everything of an organisation; answers how many blobs and uploads there were. */
  erase(orgId: string): Promise<{ blobs: number; uploads: number }>;
  /** How many blobs and uploads an organisation has, by a fresh search. */
  count(orgId: string): Promise<{ blobs: number; uploads: number }>;
}

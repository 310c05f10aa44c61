import { createHash, type Hash } from "node:crypto";

/** Digests of uploads under way, so that the last chunk need not read everything again. */
export interface UploadDigests {
  /**
   * Takes in a chunk that has been stored at `offset`, and with it the upload came from one version of its row to the
   * next. Forgets the upload where anything was missed: another replica may have begun it again.
   */
  advance(uploadId: string, offset: number, bytes: Uint8Array, version: { before: string; after: string }): void;
  /** SHA-256 of an upload of which every one of `sizeBytes` was taken in; undefined otherwise. */
  finish(uploadId: string, sizeBytes: number): Buffer | undefined;
  /** Forgets an upload. */
  drop(uploadId: string): void;
}

/**
 * Keeps the running digests of the uploads that came along last, at most `maxUploads` of them. They live in memory: after
 * a restart, or where chunks went to another replica, the bytes are read again instead.
 */
export function createUploadDigests(maxUploads = 256): UploadDigests {
  const digests = new Map<string, { hash: Hash; offset: number; version: string }>();
  return {
    advance(uploadId, offset, bytes, version) {
      let state = digests.get(uploadId);
      digests.delete(uploadId);
      if (offset === 0) state = { hash: createHash("sha256"), offset: 0, version: version.before };
      if (state === undefined || state.offset !== offset || state.version !== version.before) return;
      state.hash.update(bytes);
      state.offset += bytes.length;
      state.version = version.after;
      digests.set(uploadId, state);
      const oldest = digests.keys().next();
      if (digests.size > maxUploads && oldest.done !== true) digests.delete(oldest.value);
    },
    finish(uploadId, sizeBytes) {
      const state = digests.get(uploadId);
      return state !== undefined && state.offset === sizeBytes ? state.hash.copy().digest() : undefined;
    },
    drop(uploadId) {
      digests.delete(uploadId);
    },
  };
}

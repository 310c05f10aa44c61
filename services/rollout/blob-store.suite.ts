import { createHash, randomBytes } from "node:crypto";
import { newId } from "@octomesh/mesh/ids";
import { describe, expect, it } from "vitest";
import type { BlobKey, BlobStore, UploadKey } from "./blob-store.ts";

/** How a store under test is opened; opening it again finds what the first one stored. */
export type OpenBlobStore = () => Promise<BlobStore>;

/** What every blob store must do. */
export function blobStoreSuite(name: string, openStore: OpenBlobStore): void {
  describe(`${name} as a blob store`, () => {
    it("makes a blob of chunks that were appended one after the other", async () => {
      const store = await openStore();
      const { bytes, upload, blob } = subject(300_000);
      await store.append(upload, 0, bytes.subarray(0, 100_000));
      await store.append(upload, 100_000, bytes.subarray(100_000));
      expect(await store.digest(upload, blob, bytes.length)).toEqual(digestOf(bytes));
      expect(await store.open(blob)).toBeUndefined();
      await store.commit(upload, blob, bytes.length);
      expect(await readAll(store, blob)).toEqual(bytes);
    });

    it("reads any part of a blob", async () => {
      const store = await openStore();
      const { bytes, upload, blob } = subject(10_000);
      await store.append(upload, 0, bytes);
      await store.commit(upload, blob, bytes.length);
      for (const [first, last] of [
        [0, 0],
        [9_999, 9_999],
        [5, 4_321],
        [0, 9_999],
      ] as const) {
        expect(await readAll(store, blob, { first, last })).toEqual(bytes.subarray(first, last + 1));
      }
    });

    it("overwrites what was stored beyond the offset and never acknowledged", async () => {
      const store = await openStore();
      const { bytes, upload, blob } = subject(5_000);
      await store.append(upload, 0, bytes.subarray(0, 2_000));
      // A longer chunk whose transaction was lost: its sender begins again where it was.
      await store.append(upload, 2_000, randomBytes(9_000));
      const again = await openStore();
      await again.append(upload, 2_000, bytes.subarray(2_000));
      expect(await again.digest(upload, blob, bytes.length)).toEqual(digestOf(bytes));
      await again.commit(upload, blob, bytes.length);
      expect(await readAll(again, blob)).toEqual(bytes);
    });

    it("goes on with an upload, and finds a blob, after it was opened again", async () => {
      const { bytes, upload, blob } = subject(4_000);
      await (await openStore()).append(upload, 0, bytes.subarray(0, 1_000));
      await (await openStore()).append(upload, 1_000, bytes.subarray(1_000));
      await (await openStore()).commit(upload, blob, bytes.length);
      expect(await readAll(await openStore(), blob)).toEqual(bytes);
    });

    it("repeats a commit whose answer was lost, and digests what it made", async () => {
      const store = await openStore();
      const { bytes, upload, blob } = subject(1_000);
      await store.append(upload, 0, bytes);
      await store.commit(upload, blob, bytes.length);
      await store.commit(upload, blob, bytes.length);
      expect(await store.digest(upload, blob, bytes.length)).toEqual(digestOf(bytes));
      expect(await readAll(store, blob)).toEqual(bytes);
    });

    it("joins a second upload of the same bytes to the blob that is there", async () => {
      const store = await openStore();
      const { bytes, upload, blob } = subject(1_000);
      const second = { ...upload, uploadId: newId("upl") };
      for (const each of [upload, second]) {
        await store.append(each, 0, bytes);
        await store.commit(each, blob, bytes.length);
      }
      expect(await store.count(upload.orgId)).toEqual({ blobs: 1, uploads: 0 });
    });

    it("drops an upload, a blob, and all of an organisation, and counts what is left", async () => {
      const store = await openStore();
      const one = subject(100);
      const { orgId } = one.upload;
      const two = subject(100, orgId);
      const other = subject(100);
      for (const each of [one, two, other]) {
        await store.append(each.upload, 0, each.bytes);
        await store.commit(each.upload, each.blob, 100);
      }
      const open: UploadKey = { orgId, uploadId: newId("upl") };
      await store.append(open, 0, one.bytes);
      expect(await store.count(orgId)).toEqual({ blobs: 2, uploads: 1 });
      await store.remove(one.blob);
      await store.remove(one.blob);
      expect(await store.open(one.blob)).toBeUndefined();
      expect(await store.erase(orgId)).toEqual({ blobs: 1, uploads: 1 });
      expect(await store.count(orgId)).toEqual({ blobs: 0, uploads: 0 });
      expect(await store.erase(orgId)).toEqual({ blobs: 0, uploads: 0 });
      expect(await readAll(store, other.blob)).toEqual(other.bytes);
      await store.discard(open);
    });

    it("lets a download that is under way end well when the blob is removed", async () => {
      const store = await openStore();
      const { bytes, upload, blob } = subject(2_000_000);
      await store.append(upload, 0, bytes);
      await store.commit(upload, blob, bytes.length);
      const stream = await store.open(blob);
      if (stream === undefined) throw new Error("no blob");
      const parts: Buffer[] = [];
      for await (const part of stream as AsyncIterable<Buffer>) {
        if (parts.length === 0) await store.remove(blob);
        parts.push(part);
      }
      expect(Buffer.concat(parts).equals(bytes)).toBe(true);
    });

    it("refuses names that could lead elsewhere", async () => {
      const store = await openStore();
      const { upload, blob } = subject(1);
      await expect(store.append({ ...upload, uploadId: "../../x" }, 0, randomBytes(1))).rejects.toThrow(TypeError);
      await expect(store.append({ ...upload, orgId: "org_/.." }, 0, randomBytes(1))).rejects.toThrow(TypeError);
      await expect(store.open({ ...blob, sha256: ".." })).rejects.toThrow(TypeError);
      await expect(store.erase("..")).rejects.toThrow(TypeError);
    });

    it("does not take missing bytes for an upload", async () => {
      const store = await openStore();
      const { bytes, upload, blob } = subject(100);
      await expect(store.digest(upload, blob, 100)).rejects.toThrow(/has no bytes/);
      await expect(store.commit(upload, blob, 100)).rejects.toThrow(/has no bytes/);
      await store.append(upload, 0, bytes);
      await expect(store.digest(upload, blob, 101)).rejects.toThrow(/ends at 100/);
    });
  });
}

/** Random bytes with the names they go by. */
export function subject(
  sizeBytes: number,
  orgId: string = newId("org"),
): { bytes: Buffer; upload: UploadKey; blob: BlobKey } {
  const bytes = randomBytes(sizeBytes);
  return {
    bytes,
    upload: { orgId, uploadId: newId("upl") },
    blob: { orgId, sha256: digestOf(bytes).toString("hex") },
  };
}

/** Reads a blob to its end. */
export async function readAll(
  store: BlobStore,
  blob: BlobKey,
  range?: { first: number; last: number },
): Promise<Buffer> {
  const stream = await store.open(blob, range);
  if (stream === undefined) throw new Error("there is no such blob");
  const parts: Buffer[] = [];
  for await (const part of stream as AsyncIterable<Buffer>) parts.push(part);
  return Buffer.concat(parts);
}

function digestOf(bytes: Uint8Array): Buffer {
  return createHash("sha256").update(bytes).digest();
}

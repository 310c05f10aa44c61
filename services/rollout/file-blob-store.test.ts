import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, stat, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { blobStoreSuite, readAll, subject } from "./blob-store.suite.ts";
import { openFileBlobStore } from "./file-blob-store.ts";

let root = "";
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "octomesh-test-blobs-"));
});
afterAll(() => rm(root, { recursive: true, force: true }));

blobStoreSuite("a folder", () => openFileBlobStore(root));

describe("a folder of blobs", () => {
  it("keeps each organisation's blobs under their digests, readable by this user alone", async () => {
    const store = await openFileBlobStore(root);
    const { bytes, upload, blob } = subject(100);
    await store.append(upload, 0, bytes);
    await store.commit(upload, blob, 100);
    const path = join(root, "blobs", blob.orgId, blob.sha256);
    expect(await readFile(path)).toEqual(bytes);
    expect((await stat(path)).mode & 0o077).toBe(0);
    expect((await stat(join(root, "blobs", blob.orgId))).mode & 0o077).toBe(0);
  });

  it("says which variable to look at when the folder cannot be written", async () => {
    await expect(openFileBlobStore("/dev/null/blobs")).rejects.toThrow(/^OCTOMESH_STATE_DIR: .* cannot be written \(/);
  });

  it.skipIf(!existsSync("/dev/full"))("says STORAGE_FULL when the disk is, and keeps what was stored", async () => {
    const store = await openFileBlobStore(root);
    const { bytes, upload, blob } = subject(3_000);
    // A device that is always full in the place of the upload's file.
    const full = { orgId: upload.orgId, uploadId: newId("upl") };
    await mkdir(join(root, "uploads", full.orgId), { recursive: true });
    await symlink("/dev/full", join(root, "uploads", full.orgId, full.uploadId));
    const refused = store.append(full, 0, bytes);
    await expect(refused).rejects.toSatisfy((error) => reasonOf(error) === Reason.STORAGE_FULL);
    await store.discard(full);
    await store.append(upload, 0, bytes);
    await store.commit(upload, blob, bytes.length);
    expect(await readAll(store, blob)).toEqual(bytes);
  });

  it("loses nothing that it acknowledged when the process is killed", async () => {
    const { bytes, upload, blob } = subject(64 * 1024 * 20);
    const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module"], {
      cwd: fileURLToPath(new URL(".", import.meta.url)),
      stdio: ["pipe", "pipe", "inherit"],
    });
    const module = JSON.stringify(new URL("./file-blob-store.ts", import.meta.url).href);
    child.stdin.end(`
      const { openFileBlobStore } = await import(${module});
      const store = await openFileBlobStore(${JSON.stringify(root)});
      const bytes = Buffer.from(${JSON.stringify(bytes.toString("base64"))}, "base64");
      for (let offset = 0; offset < bytes.length; offset += 65536) {
        await store.append(${JSON.stringify(upload)}, offset, bytes.subarray(offset, offset + 65536));
        console.log(offset + 65536);
      }
      setInterval(() => {}, 1000);
    `);
    let acknowledged = 0;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    for await (const line of createInterface({ input: child.stdout })) {
      acknowledged = Number(line);
      if (acknowledged >= 65_536 * 7) child.kill("SIGKILL");
    }
    await ended;
    expect(acknowledged).toBeGreaterThanOrEqual(65_536 * 7);

    const store = await openFileBlobStore(root);
    const kept = await readFile(join(root, "uploads", upload.orgId, upload.uploadId));
    expect(kept.subarray(0, acknowledged).equals(bytes.subarray(0, acknowledged))).toBe(true);
    await store.append(upload, acknowledged, bytes.subarray(acknowledged));
    await store.commit(upload, blob, bytes.length);
    expect((await readAll(store, blob)).equals(bytes)).toBe(true);
  });
});

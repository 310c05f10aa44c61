import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Database } from "@octomesh/mesh/database";
import { nameOfReason, Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { acquireLease, type Lease, releaseLease } from "@octomesh/mesh/lease";
import { afterAll, beforeAll, expect, it } from "vitest";
import { openTestDatabase, testCall } from "../../mesh/test/database-fixture.ts";
import {
  appendChunk,
  beginUpload,
  findUpload,
  finishUpload,
  maxChunkBytes,
  uploadLifetimeMs,
} from "./artifact-uploads.ts";
import { readAll } from "./blob-store.suite.ts";
import type { BlobStore } from "./blob-store.ts";
import { openFileBlobStore } from "./file-blob-store.ts";
import type { Tables } from "./store/tables.ts";
import { sweepArtifacts, unusedArtifactLifetimeMs } from "./sweep-artifacts.ts";
import { createUploadDigests } from "./upload-digests.ts";

const database: Database<Tables> = await openTestDatabase<Tables>({
  service: "rollout",
  migrations: new URL("./migrations/", import.meta.url),
});
let root = "";
let blobs: BlobStore;
let lease: Lease;
let nowMs = 1_790_000_000_000;
const clock = { now: () => nowMs };

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "octomesh-test-uploads-"));
  blobs = await openFileBlobStore(root);
  lease = await holdFor("test");
});
afterAll(() => rm(root, { recursive: true, force: true }));

async function holdFor(holder: string): Promise<Lease> {
  const held = await acquireLease(database, { name: "test", ttlMs: 600_000, holder });
  if (held === undefined) throw new Error("the lease is taken");
  return held;
}

/** The service as one process has it; another call is another process. */
const processOf = () => ({ database, blobs, digests: createUploadDigests(), clock });
const announce = (bytes: Uint8Array) => ({
  sha256: createHash("sha256").update(bytes).digest(),
  sizeBytes: BigInt(bytes.length),
});
const call = (orgId: string) => testCall(orgId, "artifact.create");

async function refused(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    return nameOfReason(reasonOf(error) ?? Reason.UNSPECIFIED);
  }
  return "not refused";
}

it("verifies bytes of which a part came to a process that is gone", async () => {
  const orgId = newId("org");
  for (const isRight of [true, false]) {
    const bytes = randomBytes(1000);
    const { upload } = await beginUpload(processOf(), call(orgId), announce(bytes));
    await appendChunk(processOf(), call(orgId), upload.id, 0, isRight ? bytes.subarray(0, 400) : randomBytes(400));
    const last = appendChunk(processOf(), call(orgId), upload.id, 400, bytes.subarray(400));
    expect(await refused(last)).toBe(isRight ? "not refused" : "DIGEST_MISMATCH");
    if (!isRight) continue;
    const artifact = await finishUpload(processOf(), call(orgId), upload.id);
    const blob = { orgId, sha256: artifact.sha256.toString("hex") };
    expect((await readAll(blobs, blob)).equals(bytes)).toBe(true);
  }
});

it("does not take another process's bytes for those that it has seen in the same place", async () => {
  const orgId = newId("org");
  const bytes = randomBytes(1000);
  const forged = randomBytes(400);
  const [one, other] = [processOf(), processOf()];
  const { upload } = await beginUpload(one, call(orgId), announce(bytes));
  await appendChunk(one, call(orgId), upload.id, 0, bytes.subarray(0, 400));
  const wrong = appendChunk(other, call(orgId), upload.id, 400, randomBytes(600));
  expect(await refused(wrong)).toBe("DIGEST_MISMATCH");
  await appendChunk(other, call(orgId), upload.id, 0, forged);
  expect(await refused(appendChunk(one, call(orgId), upload.id, 400, bytes.subarray(400)))).toBe("DIGEST_MISMATCH");
});

it("finishes an upload whose blob was made when the process ended before the database knew", async () => {
  const orgId = newId("org");
  const bytes = randomBytes(1000);
  const process = processOf();
  const { upload } = await beginUpload(process, call(orgId), announce(bytes));
  await appendChunk(process, call(orgId), upload.id, 0, bytes);
  await blobs.commit({ orgId, uploadId: upload.id }, { orgId, sha256: upload.sha256.toString("hex") }, 1000);
  const artifact = await finishUpload(processOf(), call(orgId), upload.id);
  expect(artifact.size_bytes).toBe(1000n);
});

it("makes one artifact of an upload that is finished by many at once", async () => {
  const orgId = newId("org");
  const bytes = randomBytes(1000);
  const { upload } = await beginUpload(processOf(), call(orgId), announce(bytes));
  await appendChunk(processOf(), call(orgId), upload.id, 0, bytes);
  const artifacts = await Promise.all([1, 2, 3, 4].map(() => finishUpload(processOf(), call(orgId), upload.id)));
  expect(new Set(artifacts.map((artifact) => artifact.id)).size).toBe(1);
});

it.skipIf(!existsSync("/dev/full"))("loses nothing when the disk is full, and goes on when it is not", async () => {
  const orgId = newId("org");
  const bytes = randomBytes(2000);
  const process = processOf();
  const { upload } = await beginUpload(process, call(orgId), announce(bytes));
  const path = join(root, "uploads", orgId, upload.id);
  await mkdir(join(root, "uploads", orgId), { recursive: true });
  await symlink("/dev/full", path);
  expect(await refused(appendChunk(process, call(orgId), upload.id, 0, bytes))).toBe("STORAGE_FULL");
  expect((await findUpload(process, call(orgId), upload.id)).upload.stored_bytes).toBe(0n);
  await rm(path);
  await appendChunk(process, call(orgId), upload.id, 0, bytes);
  expect((await finishUpload(process, call(orgId), upload.id)).size_bytes).toBe(2000n);
});

it("lets an upload lapse a day after its last chunk, and removes its bytes", async () => {
  const orgId = newId("org");
  const bytes = randomBytes(2000);
  const process = processOf();
  const { upload } = await beginUpload(process, call(orgId), announce(bytes));
  nowMs += uploadLifetimeMs - 1;
  await appendChunk(process, call(orgId), upload.id, 0, bytes.subarray(0, 1000));
  nowMs += uploadLifetimeMs - 1;
  await sweepArtifacts(process, lease);
  expect((await findUpload(process, call(orgId), upload.id)).upload.stored_bytes).toBe(1000n);
  nowMs += 1;
  expect(await refused(findUpload(process, call(orgId), upload.id))).toBe("RESOURCE_NOT_FOUND");
  expect(await refused(appendChunk(process, call(orgId), upload.id, 1000, bytes.subarray(1000)))).toBe(
    "RESOURCE_NOT_FOUND",
  );
  expect(await blobs.count(orgId)).toEqual({ blobs: 0, uploads: 1 });
  expect((await sweepArtifacts(process, lease)).uploads).toBeGreaterThan(0);
  expect(await blobs.count(orgId)).toEqual({ blobs: 0, uploads: 0 });
});

it("removes an artifact that nothing refers to after a week, unless somebody asked for it again", async () => {
  const orgId = newId("org");
  const process = processOf();
  const kept = randomBytes(100);
  const lost = randomBytes(100);
  for (const bytes of [kept, lost]) {
    const { upload } = await beginUpload(process, call(orgId), announce(bytes));
    await appendChunk(process, call(orgId), upload.id, 0, bytes);
    await finishUpload(process, call(orgId), upload.id);
  }
  nowMs += unusedArtifactLifetimeMs;
  expect((await beginUpload(process, call(orgId), announce(kept))).artifact).toBeDefined();
  nowMs += 1;
  await sweepArtifacts(process, lease);
  expect(await blobs.count(orgId)).toEqual({ blobs: 1, uploads: 0 });
  expect((await beginUpload(process, call(orgId), announce(lost))).artifact).toBeUndefined();
  expect((await beginUpload(process, call(orgId), announce(kept))).artifact).toBeDefined();
});

it("keeps a blob that came back between the removal of its row and that of its bytes", async () => {
  const orgId = newId("org");
  const bytes = randomBytes(100);
  const process = processOf();
  const { sha256 } = announce(bytes);
  await database.ingest([orgId], (tx) =>
    tx
      .insertInto("blob_garbage")
      .values({ org_id: orgId, sha256, create_time: new Date(nowMs) })
      .execute(),
  );
  const { upload } = await beginUpload(process, call(orgId), announce(bytes));
  await appendChunk(process, call(orgId), upload.id, 0, bytes);
  await finishUpload(process, call(orgId), upload.id);
  await sweepArtifacts(process, lease);
  expect((await readAll(blobs, { orgId, sha256: sha256.toString("hex") })).equals(bytes)).toBe(true);
});

it("sweeps nothing without the lease", async () => {
  const orgId = newId("org");
  const process = processOf();
  await beginUpload(process, call(orgId), announce(randomBytes(10)));
  nowMs += uploadLifetimeMs;
  await releaseLease(database, lease);
  const successor = await holdFor("successor");
  expect(await sweepArtifacts(process, lease)).toEqual({ uploads: 0, artifacts: 0, blobs: 0 });
  expect((await sweepArtifacts(process, successor)).uploads).toBeGreaterThan(0);
  lease = successor;
});

it("holds a chunk of the greatest size", async () => {
  const orgId = newId("org");
  const bytes = randomBytes(maxChunkBytes);
  const process = processOf();
  const { upload } = await beginUpload(process, call(orgId), announce(bytes));
  await appendChunk(process, call(orgId), upload.id, 0, bytes);
  expect((await finishUpload(process, call(orgId), upload.id)).size_bytes).toBe(BigInt(maxChunkBytes));
});

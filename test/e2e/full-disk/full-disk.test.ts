import { type ChildProcess, spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { apiKey, bearer, createClients } from "@octomesh/sdk";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { databasePid, exitOf, launch } from "../launch.ts";

const isRootOnLinux = process.platform === "linux" && process.getuid?.() === 0;
const started: ChildProcess[] = [];
let folder = "";
let key = "";
let uploadId = "";
const bytes = randomBytes(6 * 1024 * 1024);
const models: string[] = [];

async function start(): Promise<string> {
  const mesh = await launch(join(folder, "state"));
  started.push(mesh.child);
  return mesh.publicUrl;
}

async function append(publicUrl: string, offset: number, chunk: Uint8Array): Promise<[number, string | null]> {
  const answer = await fetch(`${publicUrl}/api/v1/artifact-uploads/${uploadId}`, {
    method: "PATCH",
    headers: {
      authorization: `Bearer ${key}`,
      "content-type": "application/offset+octet-stream",
      "upload-offset": String(offset),
    },
    body: new Uint8Array(chunk),
  });
  const code = answer.status === 204 ? null : ((await answer.json()) as { code: string }).code;
  return [answer.status, code];
}

/** Fills the disk to the last block. */
async function fill(): Promise<void> {
  const ballast = await open(join(folder, "ballast"), "a");
  const block = Buffer.alloc(64 * 1024, 1);
  for (const size of [block.length, 4096]) {
    for (;;) {
      const written = await ballast.write(block, 0, size).then(
        ({ bytesWritten }) => bytesWritten,
        () => 0,
      );
      if (written < size) break;
    }
  }
  await ballast.close();
}

describe.skipIf(!isRootOnLinux)("a full disk", () => {
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "octomesh-full-"));
    const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", "size=120m", "tmpfs", folder], { encoding: "utf8" });
    expect([mounted.status, mounted.stderr]).toEqual([0, ""]);
  });

  afterAll(async () => {
    for (const child of started) child.kill("SIGKILL");
    const pid = await databasePid(join(folder, "state"));
    if (pid !== undefined) process.kill(pid, "SIGKILL");
    spawnSync("umount", ["--lazy", folder]);
    await rm(folder, { recursive: true, force: true });
  });

  test("1, 2: refuses what it cannot store, and goes on answering", async () => {
    const publicUrl = await start();
    const anonymous = createClients({ baseUrl: publicUrl });
    const setupCode = (await readFile(join(folder, "state/secrets/set-up-code"), "utf8")).trim();
    const { session } = await anonymous.organizations.setUpOrganization({
      setupCode,
      displayName: "Acme",
      ownerEmail: "owner@example.com",
    });
    anonymous.close();
    const owner = createClients({ baseUrl: publicUrl, credential: bearer(session?.accessToken ?? "") });
    key = (await owner.apiKeys.createApiKey({ name: "ci", scopes: [Scope.MODELS_READ, Scope.MODELS_WRITE] })).apiKey;
    owner.close();
    const clients = createClients({ baseUrl: publicUrl, credential: apiKey(key), retry: { maxAttempts: 1 } });
    models.push((await clients.models.createModel({ name: "before" })).name);
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    uploadId = (await clients.artifacts.createArtifactUpload({ sha256, sizeBytes: BigInt(bytes.length) })).id;
    expect(await append(publicUrl, 0, bytes.subarray(0, 1024 * 1024))).toEqual([204, null]);

    await fill();
    expect(await append(publicUrl, 1024 * 1024, bytes.subarray(1024 * 1024))).toEqual([507, "STORAGE_FULL"]);
    expect((await clients.models.listModels({})).models.map((model) => model.name)).toEqual(models);
    // Small changes may still find room in what the database holds already; what it acknowledges must last.
    for (let i = 0; i < 5; i += 1) {
      const made = await clients.models.createModel({ name: `while-full-${i}` }).catch(() => undefined);
      if (made !== undefined) models.push(made.name);
    }
    clients.close();
  });

  test("3, 4: holds what was acknowledged after a kill, and goes on with the upload once there is room", async () => {
    const [child] = started;
    child?.kill("SIGKILL");
    if (child !== undefined) await exitOf(child);
    await rm(join(folder, "ballast"));
    const publicUrl = await start();
    const clients = createClients({ baseUrl: publicUrl, credential: apiKey(key) });
    expect((await clients.models.listModels({})).models.map((model) => model.name).sort()).toEqual([...models].sort());
    const { offset } = await clients.artifacts.getArtifactUpload({ id: uploadId });
    expect(offset).toBeGreaterThanOrEqual(1024n * 1024n);
    expect(await append(publicUrl, Number(offset), bytes.subarray(Number(offset)))).toEqual([204, null]);
    const artifact = await clients.artifacts.completeArtifactUpload({ id: uploadId });
    expect(artifact.sizeBytes).toBe(BigInt(bytes.length));
    clients.close();
  });
});

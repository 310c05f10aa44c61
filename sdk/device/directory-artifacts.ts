import { createReadStream } from "node:fs";
import { type FileHandle, mkdir, open, readdir, readFile, rename, stat, unlink } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { ArtifactStore, PartialArtifact } from "./artifact-store.ts";
import { DeviceError } from "./device-error.ts";
import { acquireLockFile, type HeldLock } from "./lock-file.ts";
import { syncFolder, writeAtomically } from "./write-atomically.ts";

/**
 * Keeps artifacts in a folder: `<sha256>` is complete and verified, `<sha256>.part` is on its way with
 * `<sha256>.part.json` beside it (entity tag, and how many bytes are known to be on disk), `active.json` says what is
 * active. One client at a time: `.lock`.
 */
export function directoryArtifacts(directory: string): ArtifactStore {
  const root = resolve(directory);
  const pathOf = (sha256: string) => join(root, checkedDigest(sha256));
  let lock: HeldLock | undefined;
  return {
    async open() {
      await asStorage(() => mkdir(root, { recursive: true, mode: 0o700 }));
      lock ??= await acquireLockFile(join(root, ".lock"), { timeoutMs: 0 });
    },
    readActivation: () => asStorage(() => readIfThere(join(root, "active.json"))),
    writeActivation: (record) => asStorage(() => writeAtomically(join(root, "active.json"), record)),
    sizeOf: (sha256) =>
      asStorage(() =>
        stat(pathOf(sha256)).then(
          (file) => file.size,
          (error: unknown) => ifThere(error),
        ),
      ),
    async *read(sha256) {
      yield* readRange(pathOf(sha256));
    },
    pathOf,
    openPartial: (sha256) => asStorage(() => openPartial(root, pathOf(sha256))),
    remove: (sha256) =>
      asStorage(async () => {
        const path = pathOf(sha256);
        for (const name of [path, `${path}.part`, `${path}.part.json`]) await unlink(name).catch(ifThere);
      }),
    list: () =>
      asStorage(async () => {
        const names = await readdir(root);
        const digests = names.map((name) => /^([0-9a-f]{64})(\.part(\.json)?)?$/.exec(name)?.[1]);
        return [...new Set(digests.filter((digest) => digest !== undefined))];
      }),
    async close() {
      await lock?.release();
      lock = undefined;
    },
  };
}

async function openPartial(root: string, path: string): Promise<PartialArtifact> {
  const partPath = `${path}.part`;
  const file: FileHandle = await open(partPath, "a+", 0o600).then(async (created) => {
    await created.close();
    return await open(partPath, "r+");
  });
  let { etag, offset } = parseProgress(await readIfThere(`${partPath}.json`));
  // What lies beyond the record may never have reached the disk; what is missing certainly did not.
  if ((await file.stat()).size < offset) offset = 0;
  await file.truncate(offset);
  const record = () => writeAtomically(`${partPath}.json`, `${JSON.stringify({ etag, offset })}\n`);
  return {
    get etag() {
      return etag;
    },
    get offset() {
      return offset;
    },
    async *read() {
      if (offset > 0) yield* readRange(partPath, offset - 1);
    },
    restart: (next) =>
      asStorage(async () => {
        etag = next;
        offset = 0;
        await record();
        await file.truncate(0);
      }),
    append: (bytes) =>
      asStorage(async () => {
        for (let written = 0; written < bytes.length; ) {
          written += (await file.write(bytes, written, bytes.length - written, offset + written)).bytesWritten;
        }
        offset += bytes.length;
      }),
    checkpoint: () =>
      asStorage(async () => {
        await file.datasync();
        await record();
      }),
    complete: () =>
      asStorage(async () => {
        await file.sync();
        await file.close();
        await rename(partPath, path);
        await unlink(`${partPath}.json`).catch(ifThere);
        await syncFolder(root);
      }),
    close: () => asStorage(() => file.close()),
  };
}

function parseProgress(text: string | undefined): { etag: string | undefined; offset: number } {
  try {
    const { etag, offset } = JSON.parse(text ?? "");
    if (typeof etag === "string" && Number.isSafeInteger(offset) && offset >= 0) return { etag, offset };
  } catch {
    // Nothing is known, so the download begins anew.
  }
  return { etag: undefined, offset: 0 };
}

async function* readRange(path: string, end?: number): AsyncIterable<Uint8Array> {
  try {
    yield* createReadStream(path, { end, highWaterMark: 256 * 1024 });
  } catch (cause) {
    throw new DeviceError("STORAGE", `cannot read ${path}`, { cause });
  }
}

function readIfThere(path: string): Promise<string | undefined> {
  return readFile(path, "utf8").catch(ifThere);
}

function ifThere(error: unknown): undefined {
  if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
  throw error;
}

function checkedDigest(sha256: string): string {
  if (!/^[0-9a-f]{64}$/.test(sha256)) throw new TypeError("an artifact is named by 64 hexadecimal digits");
  return sha256;
}

async function asStorage<T>(run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (cause) {
    if (cause instanceof DeviceError || cause instanceof TypeError) throw cause;
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new DeviceError("STORAGE", `the artifact folder failed: ${why}`, { cause });
  }
}

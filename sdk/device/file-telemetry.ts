import { type FileHandle, mkdir, open, readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { DeviceError } from "./device-error.ts";
import { acquireLockFile, type HeldLock } from "./lock-file.ts";
import type { TelemetryStorage } from "./telemetry-storage.ts";
import { writeAtomically } from "./write-atomically.ts";

/**
 * Keeps the telemetry log in a file of its owner's alone. Appends reach the operating system before they are
 * acknowledged, so they survive the end of the process; `sync` makes them survive a power cut as well.
 */
export function fileTelemetry(path: string): TelemetryStorage {
  let file: FileHandle | undefined;
  let lock: HeldLock | undefined;
  let length = 0;
  const opened = () => {
    if (file === undefined) throw new DeviceError("STORAGE", "the telemetry log is not open");
    return file;
  };
  return {
    async open() {
      await asStorage(path, () => mkdir(dirname(path), { recursive: true, mode: 0o700 }));
      lock = await acquireLockFile(`${path}.lock`, { timeoutMs: 0 });
      try {
        return await asStorage(path, async () => {
          await (await open(path, "a", 0o600)).close();
          file = await open(path, "r+");
          const bytes = new Uint8Array(await readFile(path));
          length = bytes.length;
          return bytes;
        });
      } catch (error) {
        await lock.release();
        throw error;
      }
    },
    truncate: (to) =>
      asStorage(path, async () => {
        await opened().truncate(to);
        length = to;
      }),
    append: (bytes) =>
      asStorage(path, async () => {
        // By position: a failed append leaves `length` as it was, and the next one writes over what it left.
        for (let written = 0; written < bytes.length; ) {
          written += (await opened().write(bytes, written, bytes.length - written, length + written)).bytesWritten;
        }
        length += bytes.length;
      }),
    sync: () => asStorage(path, () => opened().datasync()),
    replace: (bytes) =>
      asStorage(path, async () => {
        await writeAtomically(path, bytes);
        await opened().close();
        file = await open(path, "r+");
        length = bytes.length;
      }),
    async close() {
      try {
        await file?.datasync();
        await file?.close();
      } finally {
        file = undefined;
        await lock?.release();
      }
    },
  };
}

async function asStorage<T>(path: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (cause) {
    if (cause instanceof DeviceError) throw cause;
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new DeviceError("STORAGE", `the telemetry log ${path} failed: ${why}`, { cause });
  }
}

import { open, unlink } from "node:fs/promises";
import { DeviceError } from "./device-error.ts";
import { type DeviceStore, decodeRecord, encodeRecord, maxRecordBytes } from "./device-store.ts";
import { type LockFileOptions, withLockFile } from "./lock-file.ts";
import { createMutex } from "./mutex.ts";
import { writeAtomically } from "./write-atomically.ts";

/**
 * Keeps a device's record in a file that only its owner may read (mode 0600), replaced as a whole. A file that the group
 * or others may read or write, or that belongs to somebody else, is refused with DeviceError STORE_INSECURE: whatever it
 * holds may have been copied or planted. Processes that share the file take turns by `<path>.lock`.
 */
export function fileStore(path: string, options: LockFileOptions = {}): DeviceStore {
  const inTurn = createMutex();
  return {
    async load() {
      let file: Awaited<ReturnType<typeof open>>;
      try {
        file = await open(path, "r");
      } catch (error) {
        if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
        throw new DeviceError("STORAGE", `cannot read ${path}`, { cause: error });
      }
      try {
        // Looked at through the open file, so that it cannot be another one that is read.
        const about = await file.stat();
        if (process.getuid !== undefined) {
          if ((about.mode & 0o077) !== 0) {
            const mode = (about.mode & 0o777).toString(8).padStart(4, "0");
            throw new DeviceError("STORE_INSECURE", `${path} has mode ${mode}; a credential file must have mode 0600`);
          }
          if (about.uid !== process.getuid()) {
            throw new DeviceError("STORE_INSECURE", `${path} belongs to another user`);
          }
        }
        if (!about.isFile() || about.size > maxRecordBytes) {
          throw new DeviceError("STORE_CORRUPT", `${path} is not a device record`);
        }
        return decodeRecord(await file.readFile("utf8"));
      } finally {
        await file.close();
      }
    },
    async save(record) {
      try {
        await writeAtomically(path, encodeRecord(record));
      } catch (cause) {
        throw new DeviceError("STORAGE", `cannot write ${path}`, { cause });
      }
    },
    async clear() {
      await unlink(path).catch((error: unknown) => {
        if (!(error instanceof Error && "code" in error && error.code === "ENOENT")) throw error;
      });
    },
    exclusively: (run) => inTurn(() => withLockFile(`${path}.lock`, run, options)),
  };
}

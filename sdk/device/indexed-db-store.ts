import { DeviceError } from "./device-error.ts";
import { type DeviceStore, decodeRecord, encodeRecord } from "./device-store.ts";
import { createMutex } from "./mutex.ts";

/**
 * Keeps a device's record in the browser's IndexedDB, in a database of its own. Tabs of one origin take turns by the Web
 * Locks API where the browser has it. Scripts of the same origin can read it, as they can everything of that origin.
 */
export function indexedDbStore(name = "octomesh-device"): DeviceStore {
  const inTurn = createMutex();
  return {
    async load() {
      const text = await transact<unknown>(name, "readonly", (records) => records.get("record"));
      return typeof text === "string" ? decodeRecord(text) : undefined;
    },
    async save(record) {
      await transact(name, "readwrite", (records) => records.put(encodeRecord(record), "record"));
    },
    async clear() {
      await transact(name, "readwrite", (records) => records.delete("record"));
    },
    exclusively: (run) =>
      inTurn(() => (navigator.locks ? navigator.locks.request(`${name}.lock`, run) : run())) as ReturnType<typeof run>,
  };
}

async function transact<T>(
  name: string,
  mode: IDBTransactionMode,
  run: (records: IDBObjectStore) => IDBRequest<T>,
): Promise<T> {
  const database = await new Promise<IDBDatabase>((resolve, reject) => {
    const opening = indexedDB.open(name, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("records");
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(storageError(opening.error));
  });
  try {
    return await new Promise<T>((resolve, reject) => {
      const transaction = database.transaction("records", mode, { durability: "strict" });
      const request = run(transaction.objectStore("records"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(storageError(transaction.error));
    });
  } finally {
    database.close();
  }
}

function storageError(cause: unknown): DeviceError {
  return new DeviceError("STORAGE", "the browser's storage did not answer as it should", { cause });
}

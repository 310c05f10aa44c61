import { type DeviceRecord, type DeviceStore, decodeRecord, encodeRecord } from "./device-store.ts";
import { createMutex } from "./mutex.ts";

/** Keeps a device's record in memory: it ends with the program, and the device must register anew. */
export function memoryStore(initial?: DeviceRecord): DeviceStore {
  let text = initial === undefined ? undefined : encodeRecord(initial);
  return {
    async load() {
      return text === undefined ? undefined : decodeRecord(text);
    },
    async save(record) {
      text = encodeRecord(record);
    },
    async clear() {
      text = undefined;
    },
    exclusively: createMutex(),
  };
}

import type { ArtifactStore, PartialArtifact } from "./artifact-store.ts";
import { DeviceError } from "./device-error.ts";

/**
 * Keeps artifacts in memory: they end with the program. For browsers, tests and devices without a disk. `cache` keeps
 * complete artifacts beyond the program, such as `cacheStorage()` does in browsers.
 */
export function memoryArtifacts(cache?: ArtifactCache): ArtifactStore {
  const complete = new Map<string, Uint8Array>();
  const partial = new Map<string, { etag: string | undefined; pieces: Uint8Array[]; offset: number }>();
  let activation: string | undefined;

  async function find(sha256: string): Promise<Uint8Array | undefined> {
    const found = complete.get(sha256) ?? (await cache?.get(sha256));
    if (found !== undefined) complete.set(sha256, found);
    return found;
  }

  return {
    async open() {},
    async readActivation() {
      activation ??= (await cache?.getActivation()) ?? undefined;
      return activation;
    },
    async writeActivation(record) {
      await cache?.putActivation(record);
      activation = record;
    },
    async sizeOf(sha256) {
      return (await find(sha256))?.length;
    },
    async *read(sha256) {
      const bytes = await find(sha256);
      if (bytes === undefined) throw new DeviceError("STORAGE", `artifact ${sha256} is not there`);
      yield bytes;
    },
    async openPartial(sha256): Promise<PartialArtifact> {
      const held = partial.get(sha256) ?? { etag: undefined, pieces: [], offset: 0 };
      partial.set(sha256, held);
      return {
        get etag() {
          return held.etag;
        },
        get offset() {
          return held.offset;
        },
        async *read() {
          yield* held.pieces;
        },
        async restart(etag) {
          Object.assign(held, { etag, pieces: [], offset: 0 });
        },
        async append(bytes) {
          held.pieces.push(bytes);
          held.offset += bytes.length;
        },
        async checkpoint() {},
        async complete() {
          const whole = new Uint8Array(held.offset);
          let at = 0;
          for (const piece of held.pieces) {
            whole.set(piece, at);
            at += piece.length;
          }
          await cache?.put(sha256, whole);
          complete.set(sha256, whole);
          partial.delete(sha256);
        },
        async close() {},
      };
    },
    async remove(sha256) {
      complete.delete(sha256);
      partial.delete(sha256);
      await cache?.delete(sha256);
    },
    async list() {
      return [...new Set([...complete.keys(), ...partial.keys(), ...((await cache?.keys()) ?? [])])];
    },
    async close() {},
  };
}

/** Keeps complete artifacts, and the record of which are active, beyond the program: a port. */
export interface ArtifactCache {
  /** The bytes; undefined where they are not there. */
  get(sha256: string): Promise<Uint8Array | undefined>;
  /** Keeps bytes. */
  put(sha256: string, bytes: Uint8Array): Promise<void>;
  /** Deletes bytes. */
  delete(sha256: string): Promise<void>;
  /** Digests of all that is kept. */
  keys(): Promise<string[]>;
  /** The record of what is active. */
  getActivation(): Promise<string | undefined>;
  /** Replaces that record. */
  putActivation(record: string): Promise<void>;
}

/** Keeps artifacts in the browser's Cache storage, in a cache of its own. The browser may evict it under pressure. */
export function cacheStorage(name = "octomesh-artifacts"): ArtifactCache {
  const opened = () => caches.open(name);
  const urlOf = (key: string) => `https://artifacts.invalid/${key}`;
  const getBytes = async (key: string) => {
    const response = await (await opened()).match(urlOf(key));
    return response === undefined ? undefined : new Uint8Array(await response.arrayBuffer());
  };
  return {
    get: getBytes,
    async put(sha256, bytes) {
      await (await opened()).put(urlOf(sha256), new Response(new Uint8Array(bytes)));
    },
    async delete(sha256) {
      await (await opened()).delete(urlOf(sha256));
    },
    async keys() {
      const requests = await (await opened()).keys();
      return requests.map((request) => new URL(request.url).pathname.slice(1)).filter((key) => key !== "activation");
    },
    async getActivation() {
      const bytes = await getBytes("activation");
      return bytes === undefined ? undefined : new TextDecoder().decode(bytes);
    },
    async putActivation(record) {
      await (await opened()).put(urlOf("activation"), new Response(record));
    },
  };
}

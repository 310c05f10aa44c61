import { type ArtifactStore, DeviceError } from "@octomesh/sdk";

/** Artifacts of many devices in one process. */
export interface SharedArtifacts {
  /** The store of one device. */
  storeOf(): ArtifactStore;
  /** Bytes that are kept, those on their way included. */
  bytes(): number;
}

/**
 * Makes artifact stores for many devices that keep one copy of what is the same. Every device fetches every byte over
 * the network and has it verified; only then, where another device has verified the same digest, its copy is dropped for
 * the other's. At most `maxArriving` artifacts are on their way at a time, so memory stays in bounds however large the
 * fleet is.
 */
export function sharedArtifacts(maxArriving = 24): SharedArtifacts {
  const complete = new Map<string, { bytes: Uint8Array; holders: number }>();
  const waiting: (() => void)[] = [];
  let free = maxArriving;
  let arriving = 0;

  async function enter(): Promise<() => void> {
    if (free > 0) free -= 1;
    else await new Promise<void>((resolve) => waiting.push(resolve));
    let left = false;
    return () => {
      if (left) return;
      left = true;
      const next = waiting.shift();
      if (next === undefined) free += 1;
      else next();
    };
  }

  function storeOf(): ArtifactStore {
    const held = new Set<string>();
    const partial = new Map<string, { etag: string | undefined; pieces: Uint8Array[]; offset: number }>();
    let activation: string | undefined;

    const release = (sha256: string) => {
      if (!held.delete(sha256)) return;
      const kept = complete.get(sha256);
      if (kept === undefined) return;
      kept.holders -= 1;
      if (kept.holders === 0) complete.delete(sha256);
    };
    const dropPartial = (sha256: string) => {
      arriving -= partial.get(sha256)?.offset ?? 0;
      partial.delete(sha256);
    };

    return {
      async open() {},
      async readActivation() {
        return activation;
      },
      async writeActivation(record) {
        activation = record;
      },
      async sizeOf(sha256) {
        return held.has(sha256) ? complete.get(sha256)?.bytes.length : undefined;
      },
      async *read(sha256) {
        const kept = held.has(sha256) ? complete.get(sha256) : undefined;
        if (kept === undefined) throw new DeviceError("STORAGE", `artifact ${sha256} is not there`);
        yield kept.bytes;
      },
      async openPartial(sha256) {
        const leave = await enter();
        const part = partial.get(sha256) ?? { etag: undefined, pieces: [], offset: 0 };
        partial.set(sha256, part);
        return {
          get etag() {
            return part.etag;
          },
          get offset() {
            return part.offset;
          },
          async *read() {
            yield* part.pieces;
          },
          async restart(etag) {
            arriving -= part.offset;
            Object.assign(part, { etag, pieces: [], offset: 0 });
          },
          async append(bytes) {
            part.pieces.push(bytes);
            part.offset += bytes.length;
            arriving += bytes.length;
          },
          async checkpoint() {},
          async complete() {
            const kept = complete.get(sha256);
            if (kept === undefined) complete.set(sha256, { bytes: join(part.pieces, part.offset), holders: 1 });
            else if (!held.has(sha256)) kept.holders += 1;
            held.add(sha256);
            dropPartial(sha256);
            leave();
          },
          async close() {
            leave();
          },
        };
      },
      async remove(sha256) {
        release(sha256);
        dropPartial(sha256);
      },
      async list() {
        return [...new Set([...held, ...partial.keys()])];
      },
      async close() {},
    };
  }

  return {
    storeOf,
    bytes: () => arriving + [...complete.values()].reduce((sum, { bytes }) => sum + bytes.length, 0),
  };
}

function join(pieces: readonly Uint8Array[], length: number): Uint8Array {
  const whole = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

import type { ArtifactStore } from "@octomesh/sdk";
import { describe, expect, test } from "vitest";
import { sharedArtifacts } from "./shared-artifacts.ts";

const bytes = new Uint8Array([1, 2, 3, 4]);

async function fetchWhole(store: ArtifactStore, sha256 = "a"): Promise<void> {
  const partial = await store.openPartial(sha256);
  await partial.append(bytes.subarray(0, 2));
  await partial.append(bytes.subarray(2));
  await partial.complete();
}

async function read(store: ArtifactStore, sha256 = "a"): Promise<number[]> {
  const found: number[] = [];
  for await (const piece of store.read(sha256)) found.push(...piece);
  return found;
}

describe("artifacts of many devices", () => {
  test("are kept once, and each device has only what it fetched itself", async () => {
    const shared = sharedArtifacts();
    const [first, second, third] = [shared.storeOf(), shared.storeOf(), shared.storeOf()];
    await fetchWhole(first);
    await fetchWhole(second);
    expect(shared.bytes()).toBe(4);
    expect(await read(first)).toEqual([1, 2, 3, 4]);
    expect(await read(second)).toEqual([1, 2, 3, 4]);
    expect(await third.sizeOf("a")).toBeUndefined();
    await expect(read(third)).rejects.toMatchObject({ kind: "STORAGE" });
  });

  test("go when the last device that has them lets go", async () => {
    const shared = sharedArtifacts();
    const [first, second] = [shared.storeOf(), shared.storeOf()];
    await fetchWhole(first);
    await fetchWhole(second);
    await first.remove("a");
    await first.remove("a");
    expect(await read(second)).toEqual([1, 2, 3, 4]);
    await second.remove("a");
    expect(shared.bytes()).toBe(0);
  });

  test("continue where a cut download stopped", async () => {
    const shared = sharedArtifacts();
    const store = shared.storeOf();
    const cut = await store.openPartial("a");
    await cut.restart('"a"');
    await cut.append(bytes.subarray(0, 3));
    await cut.close();
    const again = await store.openPartial("a");
    expect({ offset: again.offset, etag: again.etag }).toEqual({ offset: 3, etag: '"a"' });
    await again.append(bytes.subarray(3));
    await again.complete();
    expect(await read(store)).toEqual([1, 2, 3, 4]);
    expect(shared.bytes()).toBe(4);
  });

  test("come a bounded number at a time", async () => {
    const shared = sharedArtifacts(2);
    const open = [await shared.storeOf().openPartial("a"), await shared.storeOf().openPartial("a")];
    let entered = false;
    const third = shared
      .storeOf()
      .openPartial("a")
      .then((partial) => {
        entered = true;
        return partial;
      });
    await new Promise((resolve) => setImmediate(resolve));
    expect(entered).toBe(false);
    await open[0]?.close();
    await open[0]?.close();
    await (await third).close();
    expect(entered).toBe(true);
  });
});

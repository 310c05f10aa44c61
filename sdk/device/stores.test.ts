import { spawnSync } from "node:child_process";
import { chmod, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type DeviceRecord, type DeviceStore, decodeRecord, encodeRecord } from "./device-store.ts";
import { directoryArtifacts } from "./directory-artifacts.ts";
import { fileStore } from "./file-store.ts";
import { type KeyringModule, keyringStore } from "./keyring-store.ts";
import { acquireLockFile, withLockFile } from "./lock-file.ts";
import { memoryStore } from "./memory-store.ts";
import { createMutex } from "./mutex.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "octomesh-store-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

const sample: DeviceRecord = {
  deviceIdentifier: "unit-1",
  clientKey: "k",
  registration: {
    deviceId: "dev_a",
    orgId: "org_a",
    accessToken: "access",
    expireTimeMs: 1,
    refreshToken: "refresh",
    refreshExpireTimeMs: 2,
    manifestKeys: [{ id: "mky_a", publicKey: "AAAA" }],
    heartbeatIntervalMs: 30_000,
  },
};

/** A keyring that behaves as a platform's does, in memory. */
function keyring(): KeyringModule {
  const secrets = new Map<string, string>();
  return {
    AsyncEntry: class {
      readonly key: string;
      constructor(service: string, account: string) {
        this.key = `${service}/${account}`;
      }
      async getPassword() {
        return secrets.get(this.key);
      }
      async setPassword(password: string) {
        secrets.set(this.key, password);
      }
      async deletePassword() {
        return secrets.delete(this.key);
      }
    },
  };
}

const stores: [string, () => DeviceStore][] = [
  ["memory", () => memoryStore()],
  ["a file", () => fileStore(join(folder, "deep", "credential"))],
  ["a keyring", () => keyringStore({ account: "unit-1", keyring: keyring() })],
];

describe.each(stores)("a device store in %s", (_, make) => {
  test("gives back what was saved last, and nothing once it is cleared", async () => {
    const store = make();
    expect(await store.load()).toBeUndefined();
    await store.save({ deviceIdentifier: "unit-1", clientKey: "k" });
    expect(await store.load()).toEqual({ deviceIdentifier: "unit-1", clientKey: "k" });
    await store.save(sample);
    expect(await store.load()).toEqual(sample);
    await store.save({ ...sample, revoked: true });
    expect(await store.load()).toEqual({ ...sample, revoked: true });
    await store.clear();
    expect(await store.load()).toBeUndefined();
    await store.clear();
  });

  test("lets one run at a time, and goes on after one that failed", async () => {
    const store = make();
    let running = 0;
    let most = 0;
    const run = (fails: boolean) =>
      store.exclusively(async () => {
        most = Math.max(most, ++running);
        await new Promise((resolve) => setImmediate(resolve));
        running--;
        if (fails) throw new Error("failed");
      });
    const outcomes = await Promise.allSettled(Array.from({ length: 10 }, (_, index) => run(index % 3 === 0)));
    expect(most).toBe(1);
    expect(outcomes.filter(({ status }) => status === "rejected")).toHaveLength(4);
  });
});

describe("a credential file", () => {
  test("is its owner's alone, and leaves nothing beside it", async () => {
    const path = join(folder, "credential");
    await fileStore(path).save(sample);
    await fileStore(path).save(sample);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect(await readdir(folder)).toEqual(["credential"]);
  });

  test.each([0o644, 0o640, 0o604, 0o660, 0o602])("with mode %o is refused", async (mode) => {
    const path = join(folder, "credential");
    await fileStore(path).save(sample);
    await chmod(path, mode);
    await expect(fileStore(path).load()).rejects.toMatchObject({ kind: "STORE_INSECURE" });
  });

  test("that is not a record is refused, whatever it holds", async () => {
    const path = join(folder, "credential");
    for (const content of [
      "",
      "{}",
      "[]",
      "null",
      '{"format":2}',
      encodeRecord(sample).slice(0, -5),
      "x".repeat(1e5),
    ]) {
      await writeFile(path, content, { mode: 0o600 });
      await expect(fileStore(path).load()).rejects.toMatchObject({ kind: "STORE_CORRUPT" });
    }
  });

  test("is read as a record or refused, for any JSON", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        try {
          decodeRecord(JSON.stringify(value));
        } catch (error) {
          expect(error).toMatchObject({ kind: "STORE_CORRUPT" });
        }
      }),
    );
  });
});

describe("a keyring that is not there", () => {
  test("is a clear error", async () => {
    const missing = keyringStore({ account: "a" });
    await expect(missing.load()).rejects.toMatchObject({ kind: "KEYRING_MISSING" });
    await expect(missing.load()).rejects.toThrow("install @napi-rs/keyring");
  });
});

describe("a lock file", () => {
  test("is held by one at a time", async () => {
    const path = join(folder, "lock");
    let held = 0;
    await Promise.all(
      Array.from({ length: 8 }, () =>
        withLockFile(path, async () => {
          expect(++held).toBe(1);
          await new Promise((resolve) => setImmediate(resolve));
          held--;
        }),
      ),
    );
    expect(await readdir(folder)).toEqual([]);
  });

  test("is waited for as long as is said, and no longer", async () => {
    const path = join(folder, "lock");
    const lock = await acquireLockFile(path);
    await expect(acquireLockFile(path, { timeoutMs: 0 })).rejects.toMatchObject({ kind: "STORE_LOCKED" });
    await lock.release();
    await (await acquireLockFile(path, { timeoutMs: 0 })).release();
  });

  test("of a process that has ended is taken over at once", async () => {
    const path = join(folder, "lock");
    const { pid } = spawnSync(process.execPath, ["-e", ""]);
    await writeFile(path, `${pid} ${hostname()} abc\n`);
    await (await acquireLockFile(path, { timeoutMs: 0 })).release();
    // A container's first process has the same id in every life.
    await writeFile(path, `${process.pid} ${hostname()} abc\n`);
    await (await acquireLockFile(path, { timeoutMs: 0 })).release();
  });

  test("of another machine is taken over only when nobody renews it", async () => {
    const path = join(folder, "lock");
    await writeFile(path, "1 elsewhere abc\n");
    await expect(acquireLockFile(path, { timeoutMs: 0 })).rejects.toMatchObject({ kind: "STORE_LOCKED" });
    const longAgo = new Date(Date.now() - 60_000);
    await utimes(path, longAgo, longAgo);
    await (await acquireLockFile(path, { timeoutMs: 0 })).release();
  });

  test("that was taken over is not removed by its earlier holder", async () => {
    const path = join(folder, "lock");
    const lock = await acquireLockFile(path);
    await writeFile(path, "1 elsewhere abc\n");
    await lock.release();
    expect(await readFile(path, "utf8")).toBe("1 elsewhere abc\n");
  });
});

describe("an artifact folder", () => {
  test("is one client's at a time", async () => {
    const first = directoryArtifacts(folder);
    await first.open();
    const second = directoryArtifacts(folder);
    await expect(second.open()).rejects.toMatchObject({ kind: "STORE_LOCKED" });
    await first.close();
    await second.open();
    await second.close();
  });

  test("takes no name that is not a digest", () => {
    const store = directoryArtifacts(folder);
    for (const name of ["../x", "", "AB".repeat(32), "ab"]) expect(() => store.pathOf?.(name)).toThrow(TypeError);
  });
});

describe("a mutex", () => {
  test("runs in the order of the calls", async () => {
    const inTurn = createMutex();
    const order: number[] = [];
    await Promise.all([3, 1, 2].map((value) => inTurn(async () => void order.push(value))));
    expect(order).toEqual([3, 1, 2]);
  });
});

import { existsSync } from "node:fs";
import { mkdtemp, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { withFileLock } from "./file-lock.ts";

let folder: string;
let path: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "octomil-lock-"));
  path = join(folder, "lock");
});

afterEach(() => rm(folder, { recursive: true, force: true }));

test("runs one piece of work at a time, and all of them", async () => {
  let inside = 0;
  let most = 0;
  let done = 0;
  await Promise.all(
    Array.from({ length: 8 }, () =>
      withFileLock(path, async () => {
        inside += 1;
        most = Math.max(most, inside);
        await new Promise((resolve) => setImmediate(resolve));
        inside -= 1;
        done += 1;
      }),
    ),
  );
  expect({ most, done }).toEqual({ most: 1, done: 8 });
  expect(existsSync(path)).toBe(false);
});

test("gives the lock back when the work fails", async () => {
  await expect(withFileLock(path, () => Promise.reject(new Error("no")))).rejects.toThrow("no");
  expect(existsSync(path)).toBe(false);
});

test("takes over the lock of a process that is gone", async () => {
  // The highest process id of Linux is 2^22; no process has this one.
  await writeFile(path, "99999999 left-behind");
  await expect(withFileLock(path, async () => "done")).resolves.toBe("done");
});

test("takes over a lock that is older than any command", async () => {
  await writeFile(path, `${process.pid} left-behind`);
  const old = new Date(Date.now() - 120_000);
  await utimes(path, old, old);
  await expect(withFileLock(path, async () => "done")).resolves.toBe("done");
});

test("waits for a living holder, then says what to do", async () => {
  await writeFile(path, `${process.pid} alive`);
  await expect(withFileLock(path, async () => "done", { waitMs: 60 })).rejects.toThrow(
    "another octomil command holds the configuration",
  );
  expect(existsSync(path)).toBe(true);
});

import { randomUUID } from "node:crypto";
import { link, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { CommandError } from "./command-error.ts";

/** Bounds of a lock. */
export interface FileLockOptions {
  /** How long to wait for the holder, in milliseconds; 20 seconds by default. */
  waitMs?: number;
  /** After how long, in milliseconds, a lock counts as left behind even if its holder seems to live; a minute by default. */
  staleMs?: number;
}

/**
 * Runs `work` while no other process of this machine runs work under the same lock file. A lock that a dead process
 * left behind is taken over. Throws a CommandError when the holder does not finish in time.
 */
export async function withFileLock<T>(
  path: string,
  work: () => Promise<T>,
  { waitMs = 20_000, staleMs = 60_000 }: FileLockOptions = {},
): Promise<T> {
  const content = `${process.pid} ${randomUUID()}`;
  const deadline = Date.now() + waitMs;
  while (!(await take(path, content))) {
    await dropIfStale(path, staleMs);
    if (Date.now() > deadline) {
      throw new CommandError("another octomil command holds the configuration", {
        hint: `Wait for it to end; if there is none, delete ${path}.`,
      });
    }
    await delay(25 + Math.random() * 25);
  }
  try {
    return await work();
  } finally {
    if ((await readIfThere(path)) === content) await rm(path, { force: true });
  }
}

async function take(path: string, content: string): Promise<boolean> {
  try {
    await writeFile(path, content, { flag: "wx", mode: 0o600 });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

async function dropIfStale(path: string, staleMs: number): Promise<void> {
  const content = await readIfThere(path);
  const age = Date.now() - ((await stat(path).catch(() => undefined))?.mtimeMs ?? Date.now());
  if (content === undefined) return;
  const pid = Number.parseInt(content, 10);
  // A file without its content yet is being written by its holder.
  const left = Number.isNaN(pid) ? age > 5000 : age > staleMs || !lives(pid);
  if (!left) return;
  const aside = `${path}.${randomUUID()}`;
  try {
    await rename(path, aside);
  } catch {
    return;
  }
  // Between the look and the rename another process may have taken the lock: give it back.
  if ((await readIfThere(aside)) !== content) await link(aside, path).catch(() => undefined);
  await rm(aside, { force: true });
}

function lives(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch {
    return undefined;
  }
}

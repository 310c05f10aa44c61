import { randomBytes } from "node:crypto";
import { mkdir, open, readFile, rename, stat, unlink, utimes } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname } from "node:path";
import { wait } from "../wait.ts";
import { DeviceError } from "./device-error.ts";

/** Settings of a lock file. */
export interface LockFileOptions {
  /** How long to wait for whoever holds it, in milliseconds. Default 30,000; 0 does not wait. */
  timeoutMs?: number;
  /** A lock whose holder has not renewed it for this long is taken over, in milliseconds. Default 20,000. */
  staleMs?: number;
}

/** A lock file that is held. */
export interface HeldLock {
  /** Gives it back. */
  release(): Promise<void>;
}

/**
 * Takes a lock between processes: creates the file, or waits until it can. The holder renews the file's time while it
 * holds it. A lock is taken over when its holder on this machine is no longer running, or has not renewed it for
 * `staleMs` (a machine that stopped, a shared file system). Throws DeviceError STORE_LOCKED when the wait is over.
 */
export async function acquireLockFile(path: string, options: LockFileOptions = {}): Promise<HeldLock> {
  const timeoutMs = options.timeoutMs ?? 30_000;
  const staleMs = options.staleMs ?? 20_000;
  const token = `${process.pid} ${hostname()} ${randomBytes(12).toString("hex")}\n`;
  const deadline = performance.now() + timeoutMs;
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  for (;;) {
    heldHere.add(token);
    if (await create(path, token)) return hold(path, token, staleMs);
    heldHere.delete(token);
    const holder = await readFile(path, "utf8").catch(() => undefined);
    if (holder === undefined) continue;
    if (await isAbandoned(path, holder, staleMs)) {
      await takeAway(path, holder);
      continue;
    }
    if (performance.now() >= deadline) {
      throw new DeviceError("STORE_LOCKED", `${path} is held by process ${holder.split(" ")[0] ?? "unknown"}`);
    }
    await wait(10 + Math.random() * 40);
  }
}

/** Tokens of locks that this process holds: a lock with its process id and another token is an earlier process's. */
const heldHere = new Set<string>();

/** Runs a function while holding a lock file, and gives it back however the function ends. */
export async function withLockFile<T>(path: string, run: () => Promise<T>, options: LockFileOptions = {}): Promise<T> {
  const lock = await acquireLockFile(path, options);
  try {
    return await run();
  } finally {
    await lock.release();
  }
}

async function create(path: string, token: string): Promise<boolean> {
  try {
    const file = await open(path, "wx", 0o600);
    try {
      await file.writeFile(token);
    } finally {
      await file.close();
    }
    return true;
  } catch (error) {
    if (isCode(error, "EEXIST")) return false;
    throw error;
  }
}

function hold(path: string, token: string, staleMs: number): HeldLock {
  const renewal = setInterval(() => {
    const now = new Date();
    utimes(path, now, now).catch(() => {});
  }, staleMs / 4);
  renewal.unref();
  return {
    async release() {
      clearInterval(renewal);
      // Only what is still ours: it may have been taken over while this process was stopped.
      const holder = await readFile(path, "utf8").catch(() => undefined);
      if (holder === token) await unlink(path).catch(() => {});
      heldHere.delete(token);
    },
  };
}

async function isAbandoned(path: string, holder: string, staleMs: number): Promise<boolean> {
  const age = await stat(path).then(
    (file) => Date.now() - file.mtimeMs,
    () => 0,
  );
  // A file without its token belongs to a process that is just writing it, or that died doing so.
  if (age > staleMs) return true;
  const [pid, host] = holder.trim().split(" ");
  if (host !== hostname() || pid === undefined || !/^\d+$/.test(pid) || !holder.endsWith("\n")) return false;
  if (Number(pid) === process.pid) return !heldHere.has(holder);
  try {
    process.kill(Number(pid), 0);
    return false;
  } catch (error) {
    return isCode(error, "ESRCH");
  }
}

/** Moves an abandoned lock aside, and puts it back if in the meantime it became somebody's. */
async function takeAway(path: string, holder: string): Promise<void> {
  const aside = `${path}.${process.pid}.${randomBytes(6).toString("hex")}`;
  try {
    await rename(path, aside);
  } catch (error) {
    if (isCode(error, "ENOENT")) return;
    throw error;
  }
  const moved = await readFile(aside, "utf8").catch(() => undefined);
  if (moved !== undefined && moved !== holder) await create(path, moved);
  await unlink(aside).catch(() => {});
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}

import { randomUUID } from "node:crypto";
import { chmod, type FileHandle, lstat, mkdir, open, readdir, rename, rm, rmdir } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { CommandError, usageError } from "./command-error.ts";
import { exitCode } from "./exit-code.ts";

/** Files that a command is about to leave: there whole when it succeeds, and not at all when it fails. */
export interface StagedFiles {
  /** Writes the whole content of one of the files. */
  write(path: string, content: string): Promise<void>;
  /** Puts all of them in place. */
  commit(): Promise<void>;
  /** Takes back what was made. Never fails; does nothing after `commit`. */
  discard(): Promise<void>;
}

interface Staged {
  /** Where the file is being written: its own place, or one aside where it replaces another. */
  readonly place: string;
  readonly handle: FileHandle;
}

const overwriteHint = "Name another place, or replace what is there with --force.";

/**
 * Reserves files with mode 0600 before anything else is done, so that a place that cannot be written is found in time.
 * No file is overwritten and no link followed; with `force` a file that is there is replaced, at `commit`.
 *
 * Throws a usage error for a place that is taken or cannot be written, and for one that is named twice.
 */
export async function stageFiles(paths: readonly string[], options: { force: boolean }): Promise<StagedFiles> {
  const staged = new Map<string, Staged>();
  let committed = false;
  const discard = async (): Promise<void> => {
    if (committed) return;
    for (const { place, handle } of staged.values()) {
      await handle.close().catch(() => undefined);
      await rm(place, { force: true }).catch(() => undefined);
    }
    staged.clear();
  };
  try {
    for (const path of paths) {
      if (staged.has(resolve(path))) throw usageError(`${path} is named twice`);
      staged.set(resolve(path), await reserve(path, options.force));
    }
  } catch (error) {
    await discard();
    throw error;
  }
  return {
    discard,
    async write(path, content) {
      const file = staged.get(resolve(path));
      if (file === undefined) throw new TypeError(`${path} is not staged`);
      await file.handle.writeFile(content);
      await file.handle.sync();
    },
    async commit() {
      for (const [path, { place, handle }] of staged) {
        await handle.close();
        if (place !== path) await rename(place, path);
      }
      committed = true;
    },
  };
}

/**
 * As `stageFiles`, for files `names` in a folder of mode 0700, which is made if it is not there. A folder that holds
 * anything is taken only with `force`; what else is in it stays.
 */
export async function stageFolder(
  folder: string,
  names: readonly string[],
  options: { force: boolean },
): Promise<StagedFiles> {
  const made = await makeFolder(folder, options.force);
  const dropFolder = async (): Promise<void> => {
    if (made) await rmdir(folder).catch(() => undefined);
  };
  let files: StagedFiles;
  try {
    files = await stageFiles(
      names.map((name) => resolve(folder, name)),
      options,
    );
  } catch (error) {
    await dropFolder();
    throw error;
  }
  let committed = false;
  return {
    write: (name, content) => files.write(resolve(folder, name), content),
    async commit() {
      await files.commit();
      committed = true;
    },
    async discard() {
      await files.discard();
      if (!committed) await dropFolder();
    },
  };
}

async function makeFolder(folder: string, force: boolean): Promise<boolean> {
  try {
    await mkdir(folder, { mode: 0o700 });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw unwritable(folder, error);
  }
  try {
    if (!(await lstat(folder)).isDirectory()) throw usageError(`${folder} is there, and is no folder`);
    if (!force && (await readdir(folder)).length > 0) throw usageError(`${folder} is not empty`, overwriteHint);
    await chmod(folder, 0o700);
    return false;
  } catch (error) {
    throw error instanceof CommandError ? error : unwritable(folder, error);
  }
}

async function reserve(path: string, force: boolean): Promise<Staged> {
  try {
    const found = await lstat(path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return undefined;
      throw error;
    });
    if (found?.isDirectory() === true) throw usageError(`${path} is a folder`, "Name a file in it.");
    if (found !== undefined && !force) throw usageError(`${path} is there already`, overwriteHint);
    const own = resolve(path);
    const place = found === undefined ? own : resolve(dirname(own), `.${randomUUID()}.part`);
    return { place, handle: await open(place, "wx", 0o600) };
  } catch (error) {
    if (error instanceof CommandError) throw error;
    if ((error as NodeJS.ErrnoException).code === "EEXIST") throw usageError(`${path} is there already`, overwriteHint);
    throw unwritable(path, error);
  }
}

function unwritable(path: string, cause: unknown): CommandError {
  const { code, message } = cause as NodeJS.ErrnoException;
  const why = code === "ENOENT" ? `there is no folder ${dirname(resolve(path))}` : message;
  return new CommandError(`cannot write ${path}: ${why}`, { code: exitCode.usage, cause });
}

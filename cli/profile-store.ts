import { randomUUID } from "node:crypto";
import { chmod, mkdir, open, readFile, rename, rm, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { CommandError, usageError } from "./command-error.ts";
import { exitCode } from "./exit-code.ts";
import { withFileLock } from "./file-lock.ts";

/** A member's session as it is kept between commands. */
export interface StoredSession {
  id: string;
  access_token: string;
  /** When the access token expires, in milliseconds since the Unix epoch. */
  expire_time_ms: number;
  refresh_token: string;
}

/** One place to work at: a mesh, and what this machine may do there. */
export interface Profile {
  /** Public origin of the mesh, such as `http://localhost:8080`. */
  url: string;
  /** Id of the organisation; empty until it is known. */
  org_id: string;
  /** Name of the organisation, for people. */
  org_name: string;
  /** Who signed in, for people. */
  email: string;
  /** The session, where a member signed in. */
  session?: StoredSession;
  /** The API key, where one was stored instead. */
  api_key?: string;
}

/** Everything that the configuration file holds. */
export interface Configuration {
  version: 1;
  /** Name of the profile that commands use if they are not told another. */
  current: string;
  profiles: Record<string, Profile>;
}

/** The configuration file of `octomil`. */
export interface ProfileStore {
  /** Where the file is. */
  readonly path: string;
  /** Reads the file; an empty configuration where there is none. */
  read(): Promise<Configuration>;
  /** Changes the file under its lock: `change` gets what stands there now and may be asynchronous. */
  update<T>(change: (configuration: Configuration) => T | Promise<T>): Promise<T>;
  /** Runs work while no other command changes the file. */
  exclusively<T>(work: () => Promise<T>): Promise<T>;
  /** As `update`, for work that runs under `exclusively` already. */
  change<T>(change: (configuration: Configuration) => T | Promise<T>): Promise<T>;
}

const namePattern = /^[a-z0-9][a-z0-9._-]{0,49}$/;

/**
 * Opens the configuration in `OCTOMIL_HOME`, or `.octomil` in the home directory. The directory is made with mode 0700
 * and the file with 0600; a file that others can read is closed to them when it is found. Writes are atomic.
 */
export function openProfileStore(env: Readonly<Record<string, string | undefined>>): ProfileStore {
  const folder =
    env.OCTOMIL_HOME !== undefined && env.OCTOMIL_HOME !== "" ? env.OCTOMIL_HOME : join(homedir(), ".octomil");
  const path = join(folder, "config.json");
  const exclusively = async <T>(work: () => Promise<T>) => {
    await makeFolder(folder);
    return withFileLock(join(folder, "config.lock"), work);
  };
  const change = async <T>(apply: (configuration: Configuration) => T | Promise<T>) => {
    const configuration = await readConfiguration(path);
    const result = await apply(configuration);
    await writeConfiguration(path, configuration);
    return result;
  };
  return {
    path,
    read: () => readConfiguration(path),
    update: (apply) => exclusively(() => change(apply)),
    exclusively,
    change,
  };
}

/** Checks a profile's name: lower-case letters, digits, `.`, `_` and `-`, up to 50. Throws a usage error. */
export function checkProfileName(name: string): string {
  if (!namePattern.test(name)) {
    throw usageError(
      `"${name.slice(0, 60)}" cannot name a profile`,
      "Use lower-case letters, digits, dots, dashes and underscores, 50 at most.",
    );
  }
  return name;
}

/** Checks the URL of a mesh and returns its origin. Throws a usage error. */
export function checkUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || (url.protocol !== "http:" && url.protocol !== "https:")) {
    throw usageError(`"${text.slice(0, 100)}" is not the URL of a mesh`, "Give one such as https://mesh.example.com.");
  }
  if (url.username !== "" || url.password !== "" || url.search !== "" || url.hash !== "" || url.pathname !== "/") {
    throw usageError("the URL of a mesh is an origin: no path, query or password", `Give ${url.origin}.`);
  }
  return url.origin;
}

/** The profile of this name; undefined if there is none. */
export function profileOf(configuration: Configuration, name: string): Profile | undefined {
  return Object.hasOwn(configuration.profiles, name) ? configuration.profiles[name] : undefined;
}

async function makeFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new CommandError(`cannot write to ${folder}: ${(cause as Error).message}`, {
      code: exitCode.usage,
      hint: "OCTOMIL_HOME names another place.",
      cause,
    });
  }
}

async function readConfiguration(path: string): Promise<Configuration> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
    const { mode } = await stat(path);
    if (process.platform !== "win32" && (mode & 0o077) !== 0) await chmod(path, 0o600);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return { version: 1, current: "default", profiles: {} };
    throw new CommandError(`cannot read ${path}: ${(cause as Error).message}`, { code: exitCode.usage, cause });
  }
  const configuration = parseConfiguration(text);
  if (configuration === undefined) {
    throw new CommandError(`${path} is not a configuration of octomil`, {
      code: exitCode.usage,
      hint: "Move it away and sign in again, or set OCTOMIL_HOME.",
    });
  }
  return configuration;
}

/** Reads the text of a configuration; undefined when it is none. */
export function parseConfiguration(text: string): Configuration | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (!isRecord(value) || value.version !== 1 || typeof value.current !== "string" || !isRecord(value.profiles)) {
    return undefined;
  }
  const profiles: Record<string, Profile> = {};
  for (const [name, profile] of Object.entries(value.profiles)) {
    if (!namePattern.test(name) || !isProfile(profile)) return undefined;
    profiles[name] = profile;
  }
  return { version: 1, current: value.current, profiles };
}

async function writeConfiguration(path: string, configuration: Configuration): Promise<void> {
  const temporary = join(dirname(path), `.config.${randomUUID()}`);
  try {
    const file = await open(temporary, "wx", 0o600);
    try {
      await file.writeFile(`${JSON.stringify(configuration, null, 2)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (cause) {
    await rm(temporary, { force: true });
    throw new CommandError(`cannot write ${path}: ${(cause as Error).message}`, { cause });
  }
}

function isProfile(value: unknown): value is Profile {
  if (!isRecord(value)) return false;
  const texts = [value.url, value.org_id, value.org_name, value.email].every((text) => typeof text === "string");
  return texts && (value.api_key === undefined || typeof value.api_key === "string") && isSession(value.session);
}

function isSession(value: unknown): boolean {
  if (value === undefined) return true;
  if (!isRecord(value)) return false;
  const texts = [value.id, value.access_token, value.refresh_token].every((text) => typeof text === "string");
  return texts && typeof value.expire_time_ms === "number";
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

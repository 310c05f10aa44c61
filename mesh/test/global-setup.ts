import { randomBytes } from "node:crypto";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pino from "pino";
import type { TestProject } from "vitest/node";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "../embedded-postgres.ts";

declare module "vitest" {
  interface ProvidedContext {
    /** Where a test file asks for the shared server; see `database-fixture.ts`. */
    postgresBroker: string;
  }
}

/** What the broker answers for one service. */
export interface BrokerAnswer {
  adminUrl: string;
  passwords: { login: string; migrator: string };
}

const folderPrefix = "octomesh-test-pg-";

/**
 * Vitest's global set-up: one embedded PostgreSQL for the whole run, started when the first test file asks for it (a
 * run of pure tests starts none), stopped and deleted at the end. Durability is off; nothing here outlives the run.
 */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  await sweep();
  let stateDir: string | undefined;
  let server: Promise<EmbeddedPostgres> | undefined;
  const token = randomBytes(16).toString("hex");

  async function start(): Promise<EmbeddedPostgres> {
    stateDir = await mkdtemp(join(tmpdir(), `${folderPrefix}${process.pid}-`));
    return await startEmbeddedPostgres({ stateDir, log: pino({ level: "silent" }), unsafeFast: true });
  }

  const broker = createServer((request, response) => {
    const url = new URL(request.url ?? "/", "http://localhost");
    if (url.pathname !== `/${token}`) {
      response.writeHead(404).end();
      return;
    }
    server ??= start();
    server
      .then(async ({ adminUrl, passwords }) => {
        const answer: BrokerAnswer = { adminUrl, passwords: passwords(url.searchParams.get("service") ?? "") };
        response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(answer));
      })
      .catch((error: unknown) => response.writeHead(500).end(String(error)));
  });
  await new Promise<void>((listening) => broker.listen(0, "127.0.0.1", listening));
  const address = broker.address();
  if (typeof address !== "object" || address === null) throw new Error("the broker of the test database has no port");
  project.provide("postgresBroker", `http://127.0.0.1:${address.port}/${token}`);

  return async () => {
    broker.closeAllConnections();
    await new Promise((closed) => broker.close(closed));
    await (await server)?.stop();
    if (stateDir !== undefined) await rm(stateDir, { recursive: true, force: true });
  };
}

/** Ends the servers of runs that were killed: their folders carry the process id of the run. */
async function sweep(): Promise<void> {
  for (const name of await readdir(tmpdir())) {
    const match = new RegExp(`^${folderPrefix}(\\d+)-`).exec(name);
    if (match === null || isAlive(Number(match[1]))) continue;
    const folder = join(tmpdir(), name);
    const pidFile = await readFile(join(folder, "pg", "postmaster.pid"), "utf8").catch(() => "");
    const pid = Number(pidFile.split("\n")[0]);
    // A number that came to belong to another program says so in the second line: that is our folder only in ours.
    if (pid > 1 && pidFile.split("\n")[1] === join(folder, "pg") && isAlive(pid)) process.kill(pid, "SIGQUIT");
    await rm(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

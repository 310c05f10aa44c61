import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { apiKey, bearer, createClients } from "@octomesh/sdk";
import { afterAll, beforeAll, expect, test } from "vitest";

const root = fileURLToPath(new URL("../../../", import.meta.url));
let stateDir: string;
let key: string;
const started: ChildProcess[] = [];

beforeAll(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "octomesh-restart-"));
});

afterAll(async () => {
  for (const child of started) child.kill("SIGKILL");
  await stopDatabase();
  await rm(stateDir, { recursive: true, force: true });
});

interface Mesh {
  readonly child: ChildProcess;
  readonly publicUrl: string;
  readonly output: string[];
}

/** Starts the launcher itself, so that a signal reaches it and no wrapper. */
async function start(args: string[] = []): Promise<Mesh> {
  const child = spawn(
    process.execPath,
    ["--import", "tsx", "launcher/start.ts", "--state-dir", stateDir, "--port", "0", ...args],
    {
      cwd: root,
      env: { ...process.env, OCTOMESH_EPHEMERAL_PORTS: "1", OCTOMESH_READY_JSON: "1" },
      stdio: ["ignore", "pipe", "pipe"],
    },
  );
  started.push(child);
  const output: string[] = [];
  child.stderr?.on("data", (chunk) => output.push(String(chunk)));
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    output.push(line);
    if (line.startsWith("ready ")) {
      child.stdout?.resume();
      return { child, publicUrl: JSON.parse(line.slice(6)).publicUrl, output };
    }
  }
  throw new Error(`the mesh did not start:\n${output.join("\n")}`);
}

async function exitOf(child: ChildProcess): Promise<number | null> {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  return child.exitCode;
}

async function databasePid(): Promise<number | undefined> {
  const text = await readFile(join(stateDir, "pg/postmaster.pid"), "utf8").catch(() => "");
  const pid = Number(text.split("\n")[0]);
  return Number.isInteger(pid) && pid > 1 && isAlive(pid) ? pid : undefined;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

async function stopDatabase(): Promise<void> {
  const pid = await databasePid();
  if (pid !== undefined) process.kill(pid, "SIGQUIT");
}

async function models(publicUrl: string): Promise<string[]> {
  const clients = createClients({ baseUrl: publicUrl, credential: apiKey(key) });
  const answer = await clients.models.listModels({});
  clients.close();
  return answer.models.map((model) => model.name);
}

test("1, 2: what was started ends with Ctrl-C, the database included", async () => {
  const mesh = await start();
  const anonymous = createClients({ baseUrl: mesh.publicUrl });
  const setupCode = (await readFile(join(stateDir, "secrets/set-up-code"), "utf8")).trim();
  const { session } = await anonymous.organizations.setUpOrganization({
    setupCode,
    displayName: "Acme",
    ownerEmail: "owner@example.com",
  });
  anonymous.close();
  const owner = createClients({ baseUrl: mesh.publicUrl, credential: bearer(session?.accessToken ?? "") });
  key = (await owner.apiKeys.createApiKey({ name: "ci", scopes: [Scope.MODELS_READ, Scope.MODELS_WRITE] })).apiKey;
  await owner.models.createModel({ name: "first" });
  owner.close();
  expect(await databasePid()).toBeDefined();
  mesh.child.kill("SIGINT");
  expect(await exitOf(mesh.child)).toBe(0);
  expect(await databasePid()).toBeUndefined();
});

test("3, 4: a second start finds the same data, and kill -9 loses nothing that was acknowledged", async () => {
  const second = await start();
  expect(await models(second.publicUrl)).toEqual(["first"]);
  const clients = createClients({ baseUrl: second.publicUrl, credential: apiKey(key) });
  await clients.models.createModel({ name: "last-words" });
  second.child.kill("SIGKILL");
  await exitOf(second.child);
  clients.close();
  expect(await databasePid()).toBeDefined();
  const third = await start();
  expect(await models(third.publicUrl)).toEqual(["first", "last-words"]);
  third.child.kill("SIGTERM");
  expect(await exitOf(third.child)).toBe(0);
  expect(await databasePid()).toBeUndefined();
});

test("5: with a process for each service, one that is killed ends the mesh, and is named", async () => {
  const mesh = await start(["--processes"]);
  expect(await models(mesh.publicUrl)).toEqual(["first", "last-words"]);
  const pids = await childrenOf(mesh.child.pid ?? 0);
  expect(pids.length).toBeGreaterThanOrEqual(6);
  const telemetry = pids.find((each) => each.command.endsWith("/telemetry.mjs"));
  process.kill(telemetry?.pid ?? 0, "SIGKILL");
  expect(await exitOf(mesh.child)).toBe(1);
  expect(mesh.output.join("\n")).toContain("telemetry ended");
  for (const { pid } of pids) expect(isAlive(pid)).toBe(false);
  expect(await databasePid()).toBeUndefined();
});

async function childrenOf(parent: number): Promise<{ pid: number; command: string }[]> {
  const child = spawn("ps", ["-eo", "pid=,ppid=,args="], { stdio: ["ignore", "pipe", "inherit"] });
  const found: { pid: number; command: string }[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    const [, pid, ppid, command] = /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line) ?? [];
    if (Number(ppid) === parent && command?.includes("/services-")) found.push({ pid: Number(pid), command });
  }
  return found;
}

import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { apiKey, bearer, createClients } from "@octomesh/sdk";
import { afterAll, beforeAll, expect, test } from "vitest";
import { databasePid, exitOf, isAlive, type LaunchedMesh, launch } from "../launch.ts";

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

async function start(args: string[] = []): Promise<LaunchedMesh> {
  const mesh = await launch(stateDir, args);
  started.push(mesh.child);
  return mesh;
}

async function stopDatabase(): Promise<void> {
  const pid = await databasePid(stateDir);
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
  expect(await databasePid(stateDir)).toBeDefined();
  mesh.child.kill("SIGINT");
  expect(await exitOf(mesh.child)).toBe(0);
  expect(await databasePid(stateDir)).toBeUndefined();
});

test("3, 4: a second start finds the same data, and kill -9 loses nothing that was acknowledged", async () => {
  const second = await start();
  expect(await models(second.publicUrl)).toEqual(["first"]);
  const clients = createClients({ baseUrl: second.publicUrl, credential: apiKey(key) });
  await clients.models.createModel({ name: "last-words" });
  second.child.kill("SIGKILL");
  await exitOf(second.child);
  clients.close();
  expect(await databasePid(stateDir)).toBeDefined();
  const third = await start();
  expect(await models(third.publicUrl)).toEqual(["first", "last-words"]);
  third.child.kill("SIGTERM");
  expect(await exitOf(third.child)).toBe(0);
  expect(await databasePid(stateDir)).toBeUndefined();
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
  expect(await databasePid(stateDir)).toBeUndefined();
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

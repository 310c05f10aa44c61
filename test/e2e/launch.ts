import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** A mesh that runs as `npm start` runs it. */
export interface LaunchedMesh {
  /** The launcher itself, so that a signal reaches it and no wrapper. */
  readonly child: ChildProcess;
  readonly publicUrl: string;
  /** What it wrote, line by line. */
  readonly output: readonly string[];
}

/** Starts a mesh in a state folder, on ports of the system's choice. Throws with its output where it does not start. */
export async function launch(stateDir: string, args: readonly string[] = []): Promise<LaunchedMesh> {
  const command = ["--import", "tsx", "launcher/start.ts", "--state-dir", stateDir, "--port", "0", ...args];
  const child = spawn(process.execPath, command, {
    cwd: root,
    env: { ...process.env, OCTOMESH_EPHEMERAL_PORTS: "1", OCTOMESH_READY_JSON: "1" },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const output: string[] = [];
  child.stderr?.on("data", (chunk) => output.push(String(chunk)));
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    output.push(line);
    if (line.startsWith("ready ")) {
      child.stdout?.resume();
      return { child, publicUrl: JSON.parse(line.slice(6)).publicUrl, output };
    }
  }
  await exitOf(child);
  throw new Error(`the mesh did not start:\n${output.join("\n")}`);
}

/** Waits until a process has ended; its exit code, null where a signal ended it. */
export async function exitOf(child: ChildProcess): Promise<number | null> {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  return child.exitCode;
}

/** The process of a state folder's database, if it lives. */
export async function databasePid(stateDir: string): Promise<number | undefined> {
  const text = await readFile(join(stateDir, "pg/postmaster.pid"), "utf8").catch(() => "");
  const pid = Number(text.split("\n")[0]);
  return Number.isInteger(pid) && pid > 1 && isAlive(pid) ? pid : undefined;
}

/** Whether a process lives. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** A mesh that listens. */
export interface MeshProcess {
  /** The public origin. */
  url: string;
  /** Where edges reach the verdict service. */
  verdictUrl: string;
  /** The mesh's own edge. */
  edgeUrl: string;
  /** The one-time set-up code. */
  setUpCode: string;
  /** How long it took until it was ready, in milliseconds. */
  readyMs: number;
  /** Ends it and everything it started. Throws where it did not end well. */
  stop(): Promise<void>;
}

/** How a mesh is started. */
export interface MeshProcessOptions {
  /** Where it keeps its state. */
  stateDir: string;
  /** One process for each service instead of one for all. */
  processes: boolean;
  /** More environment variables. */
  env?: Readonly<Record<string, string>>;
  /** How long it may take until it is ready, in milliseconds. Default two minutes. */
  timeoutMs?: number;
  /** Ends the wait. */
  signal?: AbortSignal;
}

const root = fileURLToPath(new URL("../../", import.meta.url));
const keptLines = 60;

/**
 * Starts a mesh as a process of its own, as `npm start` does, on ports that the kernel chooses, and waits until it says
 * that it is ready. Throws with the end of its output where it does not come to that.
 */
export async function startMesh(options: MeshProcessOptions): Promise<MeshProcess> {
  const begin = performance.now();
  const args = ["tools/run.mjs", "start", "--state-dir", options.stateDir, "--port", "0"];
  if (options.processes) args.push("--processes");
  const child = spawn(process.execPath, args, {
    cwd: root,
    env: { ...process.env, ...options.env, OCTOMESH_READY_JSON: "1", OCTOMESH_EPHEMERAL_PORTS: "1" },
    stdio: ["ignore", "pipe", "pipe"],
    // A group of its own: Ctrl-C reaches the demo alone, which then ends the mesh in order.
    detached: process.platform !== "win32",
  });
  const lines: string[] = [];
  const keep = (line: string) => {
    lines.push(line);
    if (lines.length > keptLines) lines.shift();
  };
  try {
    const ready = await waitForReady(child, keep, options);
    const stateDir = typeof ready.stateDir === "string" ? ready.stateDir : options.stateDir;
    return {
      url: String(ready.publicUrl),
      verdictUrl: String(ready.verdictUrl),
      edgeUrl: String(ready.edgeUrl),
      setUpCode: await setUpCodeOf(ready, stateDir),
      readyMs: performance.now() - begin,
      stop: () => stop(child, lines),
    };
  } catch (error) {
    await stop(child, lines).catch(() => {});
    const said = lines.length === 0 ? "it said nothing" : lines.join("\n  ");
    throw new Error(`the mesh did not start: ${error instanceof Error ? error.message : error}\n  ${said}`, {
      cause: error,
    });
  }
}

async function waitForReady(
  child: ChildProcess,
  keep: (line: string) => void,
  { timeoutMs = 120_000, signal }: MeshProcessOptions,
): Promise<Record<string, unknown>> {
  const timeout = AbortSignal.timeout(timeoutMs);
  const until = signal === undefined ? timeout : AbortSignal.any([signal, timeout]);
  return new Promise((resolve, reject) => {
    const give = () =>
      reject(timeout.aborted ? new Error(`it was not ready after ${timeoutMs / 1000} s`) : until.reason);
    until.addEventListener("abort", give, { once: true });
    child.once("error", reject);
    child.once("exit", (code, by) => reject(new Error(`it ended with ${code ?? by}`)));
    if (child.stderr !== null) createInterface({ input: child.stderr }).on("line", keep);
    if (child.stdout === null) return;
    createInterface({ input: child.stdout }).on("line", (line) => {
      const json = /^ready (\{.*\})$/.exec(line)?.[1];
      if (json === undefined) {
        keep(line);
        return;
      }
      until.removeEventListener("abort", give);
      resolve(JSON.parse(json) as Record<string, unknown>);
    });
  });
}

async function setUpCodeOf(ready: Record<string, unknown>, stateDir: string): Promise<string> {
  const inCommand = /edg_setup_[0-9A-Za-z]+/.exec(String(ready.setUpCommand ?? ""))?.[0];
  return inCommand ?? (await readFile(join(stateDir, "secrets/set-up-code"), "utf8")).trim();
}

async function stop(child: ChildProcess, lines: readonly string[]): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit") as Promise<[number | null, NodeJS.Signals | null]>;
  child.kill("SIGTERM");
  const patience = setTimeout(() => killGroup(child.pid), 30_000);
  const [code, by] = await ended;
  clearTimeout(patience);
  if (by === "SIGKILL") throw new Error(`the mesh did not drain within 30 s\n  ${lines.join("\n  ")}`);
  if (code !== 0 && code !== null) throw new Error(`the mesh ended with ${code}\n  ${lines.join("\n  ")}`);
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(process.platform === "win32" ? pid : -pid, "SIGKILL");
  } catch {
    // It ended in the meantime.
  }
}

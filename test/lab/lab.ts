import { type ChildProcess, type SpawnOptions, spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { accessSync, constants, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { DelayLink } from "./delay-link.ts";

/** What a laboratory is made of. Names of namespaces are the topology's own, without the prefix. */
export interface LabTopology {
  readonly namespaces: readonly string[];
  readonly links: readonly LabLink[];
  /** `to` is a network or "default". */
  readonly routes?: readonly { readonly namespace: string; readonly to: string; readonly via: string }[];
}

/** A delay link (see DelayLink) between two namespaces, by their names and addresses there. */
export interface LabLink {
  readonly ends: readonly [LabEnd, LabEnd];
  readonly rtt: number;
  readonly jitter?: number;
  readonly mtu?: number;
}

/** One end of a link. The device's name is the link's place in the list and a or b: "d0a", "d0b", "d1a" … */
export interface LabEnd {
  readonly namespace: string;
  readonly address: string;
}

/** Network namespaces with delay links between them, until closed. */
export interface Lab {
  /** The name that `ip netns` knows a namespace by. */
  nameOf(namespace: string): string;
  /** Starts a command in a namespace. It is killed when the laboratory closes. */
  run(namespace: string, command: string, args: readonly string[], options?: SpawnOptions): ChildProcess;
  /** Runs a command in a namespace to its end (20 s at most) and gives its output; throws where it fails. */
  call(namespace: string, command: string, args: readonly string[]): string;
  /** Ends what was started and removes what was made, in 5 s at most. May be called more than once. */
  close(): Promise<void>;
}

/** The commands that some laboratories need besides `ip`. */
export type LabTool = "iptables" | "tinyproxy" | "microsocks" | "openvpn" | "openssl" | "wireguard-go" | "wg";

/** Debian packages of the tools that are not named like their package. */
const packages: Readonly<Record<string, string>> = { ip: "iproute2", wg: "wireguard-tools" };

/** What is missing for a laboratory with these tools, each by its name; empty where all is there. */
export function labAvailable(tools: readonly LabTool[] = []): string[] {
  if (process.platform !== "linux") return ["Linux"];
  const missing: string[] = [];
  if (process.getuid?.() !== 0) missing.push("root");
  try {
    accessSync("/dev/net/tun", constants.R_OK | constants.W_OK);
  } catch {
    missing.push("/dev/net/tun");
  }
  for (const tool of ["ip", ...new Set(tools)]) {
    if (succeeds("sh", ["-c", 'command -v "$0"', tool])) continue;
    missing.push(packages[tool] === undefined ? tool : `${tool} (${packages[tool]})`);
  }
  if (missing.length > 0) return missing;
  // Root of a container may be without the right to make namespaces, and a kernel without what translates addresses.
  const probe = `${newPrefix()}probe`;
  if (!succeeds("ip", ["netns", "add", probe])) return ["the right to make network namespaces (CAP_SYS_ADMIN)"];
  const nat = ["netns", "exec", probe, "iptables", "-w", "-t", "nat", "-L", "-n"];
  if (tools.includes("iptables") && !succeeds("ip", nat)) missing.push("iptables with a nat table");
  removeNamespace(probe);
  return missing;
}

/** `om`, the process that made it, when that started, and a number at random: two runs share no name. */
const namePattern = /^om-(\d+)-([0-9a-z]+)-[0-9a-f]{6}-/;

function newPrefix(): string {
  return `om-${process.pid}-${startOf(process.pid)}-${randomBytes(3).toString("hex")}-`;
}

/**
 * Removes the namespaces of laboratories whose process is gone, with what still runs in them, and gives their names.
 * `createLab` does so at its first call.
 */
export function removeStaleNamespaces(): string[] {
  const listed = spawnSync("ip", ["netns", "list"], { encoding: "utf8", timeout: 20_000 }).stdout ?? "";
  const names = listed.split("\n").map((line) => line.split(" ")[0] ?? "");
  const stale = names.filter((name) => {
    const [, pid, started] = namePattern.exec(name) ?? [];
    return pid !== undefined && startOf(Number(pid)) !== started;
  });
  for (const name of stale) removeNamespace(name);
  return stale;
}

/** When a process started, in clock ticks since boot to base 36 (proc(5), stat, field 22); undefined where it is gone. */
function startOf(pid: number): string | undefined {
  try {
    // The second field, the command in parentheses, may hold spaces.
    const fields = readFileSync(`/proc/${pid}/stat`, "latin1")
      .replace(/^.*\) /s, "")
      .split(" ");
    return fields[0] === "Z" ? undefined : Number(fields[19]).toString(36);
  } catch {
    return undefined;
  }
}

const endings = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
/** Of each open laboratory: what removes it at once. */
const open = new Set<() => void>();
let swept = false;

function removeAll(): void {
  for (const remove of open) remove();
}

function endBy(signal: NodeJS.Signals): void {
  removeAll();
  unwatch();
  process.kill(process.pid, signal);
}

function watch(): void {
  process.on("exit", removeAll);
  for (const signal of endings) process.on(signal, endBy);
}

function unwatch(): void {
  process.removeListener("exit", removeAll);
  for (const signal of endings) process.removeListener(signal, endBy);
}

/**
 * Makes the namespaces, named `om-<process>-<its start>-<random>-<name>`, and the links. Rejects, with nothing left
 * behind, where something cannot be made; see `labAvailable`. What it made goes when it is closed, when the process
 * exits, and on SIGINT, SIGTERM and SIGHUP; after a SIGKILL the next laboratory removes it.
 *
 * @param lifeMs the links carry nothing after this, an hour by default
 */
export async function createLab(topology: LabTopology, { lifeMs = 3_600_000 } = {}): Promise<Lab> {
  if (!swept) removeStaleNamespaces();
  swept = true;
  const prefix = newPrefix();
  const nameOf = (namespace: string) => {
    if (!topology.namespaces.includes(namespace)) throw new Error(`no namespace ${namespace} in this laboratory`);
    return `${prefix}${namespace}`;
  };
  const children = new Set<ChildProcess>();
  const namespaces: string[] = [];
  const start = (command: string, args: readonly string[], options: SpawnOptions = {}) => {
    const child = spawn(command, args, { stdio: "ignore", ...options });
    children.add(child);
    child.on("error", () => children.delete(child));
    child.once("exit", () => children.delete(child));
    return child;
  };
  const remove = () => {
    for (const child of children) child.kill("SIGKILL");
    for (const name of namespaces.splice(0)) removeNamespace(name);
  };
  if (open.size === 0) watch();
  open.add(remove);
  const close = async () => {
    const gone = [...children].map((child) => once(child, "exit").catch(() => undefined));
    remove();
    await Promise.race([Promise.all(gone), new Promise((resolve) => setTimeout(resolve, 5_000).unref())]);
    if (open.delete(remove) && open.size === 0) unwatch();
  };
  try {
    for (const namespace of topology.namespaces) {
      namespaces.push(nameOf(namespace));
      must("ip", ["netns", "add", nameOf(namespace)]);
      must("ip", ["-n", nameOf(namespace), "link", "set", "lo", "up"]);
    }
    await startLinks(topology, nameOf, start, lifeMs);
    for (const { namespace, to, via } of topology.routes ?? []) {
      must("ip", ["-n", nameOf(namespace), "route", "add", to, "via", via]);
    }
  } catch (error) {
    await close();
    throw error;
  }
  return {
    nameOf,
    run: (namespace, command, args, options) =>
      start("ip", ["netns", "exec", nameOf(namespace), command, ...args], options),
    call: (namespace, command, args) => must("ip", ["netns", "exec", nameOf(namespace), command, ...args]),
    close,
  };
}

async function startLinks(
  topology: LabTopology,
  nameOf: (namespace: string) => string,
  start: (command: string, args: readonly string[], options: SpawnOptions) => ChildProcess,
  lifeMs: number,
): Promise<void> {
  if (topology.links.length === 0) return;
  const links: DelayLink[] = topology.links.map((link, index) => ({
    ...link,
    ends: [
      { namespace: nameOf(link.ends[0].namespace), address: link.ends[0].address, device: `d${index}a` },
      { namespace: nameOf(link.ends[1].namespace), address: link.ends[1].address, device: `d${index}b` },
    ],
  }));
  const program = fileURLToPath(new URL("delay-link.ts", import.meta.url));
  const args = ["--import", import.meta.resolve("tsx"), program, JSON.stringify({ links, lifeMs })];
  // Its input is a pipe of ours: when this process goes, however it goes, the links end.
  const child = start(process.execPath, args, { stdio: ["pipe", "pipe", "pipe"] });
  await new Promise<void>((resolve, reject) => {
    let problem = "";
    const late = setTimeout(() => reject(new Error("the delay links did not start in 20 s")), 20_000);
    child.stderr?.on("data", (chunk) => {
      problem = `${problem}${chunk}`.slice(-4_000);
    });
    child.stdout?.once("data", () => resolve());
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`the delay links ended with ${code}: ${problem}`)));
    child.once("close", () => clearTimeout(late));
    child.stdout?.once("data", () => clearTimeout(late));
  });
  for (const { ends, mtu = 1_500 } of links) {
    for (const [end, peer] of [ends, [ends[1], ends[0]] as const]) {
      must("ip", ["-n", end.namespace, "address", "add", end.address, "peer", peer.address, "dev", end.device]);
      must("ip", ["-n", end.namespace, "link", "set", end.device, "up", "mtu", String(mtu), "txqueuelen", "1000"]);
    }
  }
}

function removeNamespace(name: string): void {
  // A browser leaves processes that are no children of ours: whatever is in a namespace of ours is.
  const inside = spawnSync("ip", ["netns", "pids", name], { encoding: "utf8", timeout: 20_000 }).stdout ?? "";
  for (const pid of inside.split("\n").filter(Boolean)) kill(Number(pid));
  spawnSync("ip", ["netns", "delete", name], { timeout: 20_000 });
}

function succeeds(command: string, args: readonly string[]): boolean {
  return spawnSync(command, args, { stdio: "ignore", timeout: 20_000 }).status === 0;
}

function must(command: string, args: readonly string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: "utf8", timeout: 20_000 });
  if (status === 0) return stdout;
  throw new Error(`${command} ${args.join(" ")} failed: ${error?.message ?? `${stderr}${stdout}`.trim()}`);
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It went by itself.
  }
}

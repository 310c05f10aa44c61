import { readdir, readFile } from "node:fs/promises";

/** Ticks of the kernel's clock per second, which `/proc` counts in: 100 on every architecture that Node runs on. */
const ticksPerSecond = 100;

/** The one process whose last argument ends so. Linux only. Throws where there is none, or more than one. */
export async function processOf(argument: string): Promise<number> {
  const found: number[] = [];
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const line = await readFile(`/proc/${name}/cmdline`, "utf8").catch(() => "");
    if (line.split("\0").filter(Boolean).at(-1)?.endsWith(`/${argument}`)) found.push(Number(name));
  }
  const [pid] = found;
  if (pid === undefined || found.length > 1) throw new Error(`${found.length} processes run ${argument}`);
  return pid;
}

/** CPU time that a process has used so far, user and system, in seconds. Linux only. */
export async function cpuSecondsOf(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  // The name before may hold spaces and brackets; fields 14 and 15 of proc(5) are 11 and 12 after it.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
}

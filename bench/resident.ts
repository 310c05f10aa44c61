import { readFile } from "node:fs/promises";

/** Most memory that a process has had resident so far, in MB (10^6 bytes). Linux only. */
export async function peakResidentMb(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  const kibibytes = /^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1];
  return (Number(kibibytes) * 1024) / 1e6;
}

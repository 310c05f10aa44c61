import { createServer } from "node:net";
import { platform } from "node:os";

const perBlock = 250;

/**
 * The source address of one of a fleet's devices: a distinct one of 127.0.0.0/8 for each `index` from 0 to 62,499.
 * `block`, 1 to 254, keeps fleets apart that run on one machine at the same time.
 */
export function loopbackAddress(block: number, index: number): string {
  if (!Number.isInteger(block) || block < 1 || block > 254) throw new RangeError("a block is from 1 to 254");
  if (!Number.isInteger(index) || index < 0 || index >= perBlock * perBlock) {
    throw new RangeError(`a fleet has at most ${perBlock * perBlock} addresses`);
  }
  return `127.${block}.${1 + Math.floor(index / perBlock)}.${1 + (index % perBlock)}`;
}

/**
 * Whether connections to `url` can be made from any address of 127.0.0.0/8: the mesh is on this machine, and the system
 * takes the whole range for its own, as Linux does and macOS does not.
 */
export async function hasLoopbackRange(url: string): Promise<boolean> {
  const { hostname } = new URL(url);
  if (hostname !== "localhost" && !/^127(\.\d{1,3}){3}$/.test(hostname)) return false;
  if (platform() !== "linux") return false;
  return new Promise((resolve) => {
    const probe = createServer();
    probe.once("error", () => resolve(false));
    probe.listen(0, "127.254.251.250", () => probe.close(() => resolve(true)));
  });
}

/** The URL that a device with a loopback source address connects to: an IPv4 address, as its source is one. */
export function loopbackUrl(url: string): string {
  const target = new URL(url);
  if (target.hostname === "localhost") target.hostname = "127.0.0.1";
  return target.origin;
}

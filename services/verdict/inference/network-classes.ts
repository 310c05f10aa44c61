import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { isIP } from "node:net";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** What an address's network is, as far as it matters here. */
export type NetworkClass = "hosting" | "splitting-carrier";

/** Class of an address; undefined where it is neither, not known, or not an address. Never throws. */
export type NetworkClasses = (address: string) => NetworkClass | undefined;

const magic = "octomesh networks 1\n";
const classes: readonly NetworkClass[] = ["hosting", "splitting-carrier"];

/**
 * The table that `tools/hosting-networks.mjs` makes: `.cache/hosting-networks.bin` in the nearest folder above this module
 * that has one. Undefined where there is none.
 */
export function findNetworkTable(): string | undefined {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (;;) {
    const file = join(folder, ".cache/hosting-networks.bin");
    if (existsSync(file)) return file;
    const above = dirname(folder);
    if (above === folder) return undefined;
    folder = above;
  }
}

/**
 * Opens a table of networks. Its form: the line `octomesh networks 1`, then, big-endian, a 32-bit count of IPv4 ranges and
 * one of IPv6 ranges; then each IPv4 range as first and last address (32 bits each) and class (8 bits), and each IPv6
 * range as the upper halves of first and last address (64 bits each) and class. Ranges rise and do not overlap.
 * Rejects where the file is missing or of another form.
 */
export async function openNetworkClasses(file: string): Promise<NetworkClasses> {
  const data = await readFile(file);
  const head = magic.length + 8;
  if (data.length < head || data.subarray(0, magic.length).toString("latin1") !== magic) {
    throw new Error("not a table of networks");
  }
  const four = data.readUInt32BE(magic.length);
  const six = data.readUInt32BE(magic.length + 4);
  if (data.length !== head + 9 * four + 17 * six) throw new Error("the table of networks is cut off");
  const sixAt = head + 9 * four;
  return (address) => {
    const plain = address.replace(/^::ffff:(?=\d+\.)/i, "");
    const family = plain.includes("%") ? 0 : isIP(plain);
    if (family === 4) {
      const value = plain.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
      return find(four, (index) => {
        const at = head + 9 * index;
        return [data.readUInt32BE(at) <= value, value <= data.readUInt32BE(at + 4), data[at + 8]];
      });
    }
    if (family !== 6) return undefined;
    const value = upperHalf(plain);
    return find(six, (index) => {
      const at = sixAt + 17 * index;
      return [data.readBigUInt64BE(at) <= value, value <= data.readBigUInt64BE(at + 8), data[at + 16]];
    });
  };
}

/** The class of the last range that begins at or before the value, if it holds it. */
function find(
  count: number,
  range: (index: number) => [begins: boolean, holds: boolean, which: number | undefined],
): NetworkClass | undefined {
  let [low, high] = [0, count];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (range(middle)[0]) low = middle + 1;
    else high = middle;
  }
  if (low === 0) return undefined;
  const [, holds, which] = range(low - 1);
  return holds && which !== undefined ? classes[which] : undefined;
}

/** The upper 64 bits of a valid IPv6 address. */
function upperHalf(address: string): bigint {
  // A dotted quad stands at the very end and fills the lower half only.
  const [left = "", right] = address.replace(/\d+\.\d+\.\d+\.\d+$/, "0:0").split("::");
  const groups = (text: string | undefined): string[] => (text ? text.split(":") : []);
  const before = groups(left);
  const after = groups(right);
  const all =
    right === undefined ? before : [...before, ...Array<string>(8 - before.length - after.length).fill("0"), ...after];
  return all.slice(0, 4).reduce((sum, group) => (sum << 16n) | BigInt(`0x${group}`), 0n);
}

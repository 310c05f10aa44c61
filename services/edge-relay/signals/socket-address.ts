import { isIP } from "node:net";
import { endianness } from "node:os";
import { normalizeAddress } from "@octomesh/mesh/cidr";

/** An address as the kernel reads it. */
export interface SocketAddress {
  readonly version: 4 | 6;
  /** `struct sockaddr_in` or `sockaddr_in6`, its port zero. */
  readonly bytes: Buffer;
}

const AF_INET = 2;
const AF_INET6 = 10;

/**
 * Writes an address, IPv4 or IPv6 in text, as the kernel of Linux reads it; IPv4 mapped into IPv6 as IPv4. Undefined
 * for what is no address of one machine: the unspecified, multicast and reserved ones and broadcast, and link-local
 * IPv6, which means nothing without its link.
 */
export function socketAddressFrom(text: string): SocketAddress | undefined {
  if (text.length > 64) return undefined;
  const address = normalizeAddress(text);
  if (address === undefined) return undefined;
  return isIP(address) === 4 ? ipv4(address) : ipv6(address);
}

/** The address within what the kernel wrote; undefined for other families and what is too short. */
export function hostBytesOf(version: 4 | 6, bytes: Buffer): Buffer | undefined {
  const [family, start, length] = version === 4 ? [AF_INET, 4, 4] : [AF_INET6, 8, 16];
  if (bytes.length < start + length || readFamily(bytes) !== family) return undefined;
  return bytes.subarray(start, start + length);
}

function ipv4(address: string): SocketAddress | undefined {
  const parts = address.split(".").map(Number);
  const first = parts[0] ?? 0;
  if (first === 0 || first >= 224) return undefined;
  const bytes = Buffer.alloc(16);
  writeFamily(bytes, AF_INET);
  bytes.set(parts, 4);
  return { version: 4, bytes };
}

function ipv6(address: string): SocketAddress | undefined {
  const groups = groupsOf(address);
  const first = groups[0] ?? 0;
  if (first >= 0xff00 || (first & 0xffc0) === 0xfe80 || groups.every((group) => group === 0)) return undefined;
  const bytes = Buffer.alloc(28);
  writeFamily(bytes, AF_INET6);
  for (const [i, group] of groups.entries()) bytes.writeUInt16BE(group, 8 + 2 * i);
  return { version: 6, bytes };
}

/** The eight groups of an address in its shortest form, which has no dots. */
function groupsOf(address: string): number[] {
  const [head = "", tail = ""] = address.split("::");
  const numbers = (part: string): number[] =>
    part
      .split(":")
      .filter((group) => group !== "")
      .map((group) => parseInt(group, 16));
  const before = numbers(head);
  const after = numbers(tail);
  return [...before, ...new Array<number>(8 - before.length - after.length).fill(0), ...after];
}

const isLittleEndian = endianness() === "LE";

function writeFamily(bytes: Buffer, family: number): void {
  if (isLittleEndian) bytes.writeUInt16LE(family, 0);
  else bytes.writeUInt16BE(family, 0);
}

function readFamily(bytes: Buffer): number {
  return isLittleEndian ? bytes.readUInt16LE(0) : bytes.readUInt16BE(0);
}

import { isIP } from "node:net";
import ipaddr from "ipaddr.js";

/** A set of networks. */
export interface CidrList {
  /** Whether an address, IPv4 or IPv6 in text, is in one of the networks. False for what is no address. */
  includes(address: string): boolean;
  readonly size: number;
}

/** Reads addresses and CIDR blocks, separated by commas or spaces; undefined if one of them is neither. */
export function parseCidrList(text: ""): CidrList;
export function parseCidrList(text: string): CidrList | undefined;
export function parseCidrList(text: string): CidrList | undefined {
  const blocks: Block[] = [];
  for (const part of text.split(/[\s,]+/).filter((each) => each !== "")) {
    const block = parseBlock(part);
    if (block === undefined) return undefined;
    blocks.push(block);
  }
  return {
    size: blocks.length,
    includes(address) {
      if (isIP(address) === 0) return false;
      const parsed = ipaddr.process(address);
      return blocks.some(([block, bits]) => block.kind() === parsed.kind() && parsed.match(block, bits));
    },
  };
}

type Block = [ipaddr.IPv4 | ipaddr.IPv6, number];

/** Only full addresses: other readers take `10`, `127.1` or `0x7f.1` for one, and not all for the same. */
function parseBlock(text: string): Block | undefined {
  const [address = "", length, ...more] = text.split("/");
  const version = isIP(address);
  if (version === 0 || address.includes("%") || more.length > 0) return undefined;
  if (length !== undefined && !/^\d{1,3}$/.test(length)) return undefined;
  const bits = version === 4 ? 32 : 128;
  const prefix = length === undefined ? bits : Number(length);
  if (prefix > bits) return undefined;
  const parsed = ipaddr.parse(address);
  if (parsed instanceof ipaddr.IPv6 && parsed.isIPv4MappedAddress() && prefix >= 96) {
    return [parsed.toIPv4Address(), prefix - 96];
  }
  return [parsed, prefix];
}

/** An address in its shortest form, IPv4 where it is IPv4 mapped into IPv6; undefined for what is no full address. */
export function normalizeAddress(address: string): string | undefined {
  const bare = address.replace(/%.*$/, "");
  return isIP(bare) === 0 ? undefined : ipaddr.process(bare).toString();
}

/** Whether a host to listen on or to call is this machine alone: `localhost`, 127.0.0.0/8 or ::1. */
export function isLoopbackHost(host: string): boolean {
  if (host === "localhost") return true;
  const bare = host.replace(/^\[(.*)\]$/, "$1");
  return isIP(bare) !== 0 && ipaddr.process(bare).range() === "loopback";
}

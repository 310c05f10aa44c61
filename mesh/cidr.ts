import ipaddr from "ipaddr.js";

/** A set of networks. */
export interface CidrList {
  /** Whether an address, IPv4 or IPv6 in text, is in one of the networks. False for what is no address. */
  includes(address: string): boolean;
  readonly size: number;
}

/** Reads addresses and CIDR blocks, separated by commas or spaces; undefined if one of them is neither. */
export function parseCidrList(text: string): CidrList | undefined;
export function parseCidrList(text: ""): CidrList;
export function parseCidrList(text: string): CidrList | undefined {
  const blocks: [ipaddr.IPv4 | ipaddr.IPv6, number][] = [];
  for (const part of text.split(/[\s,]+/).filter((each) => each !== "")) {
    if (ipaddr.isValidCIDR(part)) blocks.push(ipaddr.parseCIDR(part));
    else if (ipaddr.isValid(part)) {
      const address = ipaddr.parse(part);
      blocks.push([address, address.kind() === "ipv4" ? 32 : 128]);
    } else return undefined;
  }
  return {
    size: blocks.length,
    includes(address) {
      if (!ipaddr.isValid(address)) return false;
      const parsed = ipaddr.process(address);
      return blocks.some(([block, bits]) => block.kind() === parsed.kind() && parsed.match(block, bits));
    },
  };
}

/** An address in its shortest form, IPv4 where it is IPv4 mapped into IPv6; undefined for what is no address. */
export function normalizeAddress(address: string): string | undefined {
  const bare = address.replace(/%.*$/, "");
  return ipaddr.isValid(bare) ? ipaddr.process(bare).toString() : undefined;
}

/** Whether a host to listen on or to call is this machine alone: `localhost`, 127.0.0.0/8 or ::1. */
export function isLoopbackHost(host: string): boolean {
  if (host === "localhost") return true;
  const bare = host.replace(/^\[(.*)\]$/, "$1");
  return ipaddr.isValid(bare) && ipaddr.process(bare).range() === "loopback";
}

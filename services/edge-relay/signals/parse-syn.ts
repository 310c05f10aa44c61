import type { MessageInitShape } from "@bufbuild/protobuf";
import type { SynSchema } from "@octomesh/proto/octomesh/edge/v1/connection_pb";

/** A SYN as the contract has it. */
export type SynInit = Omit<MessageInitShape<typeof SynSchema>, "$typeName"> & {
  ipVersion: number;
  ttl: number;
  window: number;
  mss: number;
  windowScale: number;
  options: string;
  dontFragment: boolean;
};

/** The contract's bound of the options' text. */
const maxOptionsLength = 128;

/**
 * Reads a raw IPv4 or IPv6 packet that holds a TCP header. Undefined for bytes that hold none whole; options that are
 * cut off or of a wrong length end the list. Never throws. IPv6 packets are never fragmented on their way, so of them
 * `dontFragment` is true.
 *
 * Source: RFC 791 section 3.1, RFC 8200 sections 3 and 4, RFC 9293 section 3.1.
 */
export function parseSyn(packet: Buffer): SynInit | undefined {
  const ip = readIpHeader(packet);
  if (ip === undefined || packet.length < ip.length + 20) return undefined;
  const tcp = packet.subarray(ip.length);
  const headerLength = 4 * (tcp.readUInt8(12) >> 4);
  if (headerLength < 20 || tcp.length < headerLength) return undefined;
  const { names, mss, windowScale } = readOptions(tcp.subarray(20, headerLength));
  return {
    ipVersion: ip.version,
    ttl: ip.ttl,
    dontFragment: ip.dontFragment,
    window: tcp.readUInt16BE(14),
    mss,
    windowScale,
    options: joinWithin(names, maxOptionsLength),
  };
}

interface IpHeader {
  version: 4 | 6;
  length: number;
  ttl: number;
  dontFragment: boolean;
}

const tcpProtocol = 6;

function readIpHeader(packet: Buffer): IpHeader | undefined {
  const version = packet.length === 0 ? 0 : packet.readUInt8(0) >> 4;
  if (version === 4) return readIpv4Header(packet);
  if (version === 6) return readIpv6Header(packet);
  return undefined;
}

function readIpv4Header(packet: Buffer): IpHeader | undefined {
  const length = 4 * (packet.readUInt8(0) & 0x0f);
  if (length < 20 || packet.length < length || packet.readUInt8(9) !== tcpProtocol) return undefined;
  return { version: 4, length, ttl: packet.readUInt8(8), dontFragment: (packet.readUInt8(6) & 0x40) !== 0 };
}

/** Hop-by-hop options, routing and destination options: headers that tell their own length alike. */
const ipv6Extensions: ReadonlySet<number> = new Set([0, 43, 60]);

function readIpv6Header(packet: Buffer): IpHeader | undefined {
  if (packet.length < 40) return undefined;
  let next = packet.readUInt8(6);
  let length = 40;
  while (ipv6Extensions.has(next)) {
    if (packet.length < length + 2) return undefined;
    next = packet.readUInt8(length);
    length += 8 * (packet.readUInt8(length + 1) + 1);
  }
  if (next !== tcpProtocol) return undefined;
  return { version: 6, length, ttl: packet.readUInt8(7), dontFragment: true };
}

const optionNames: ReadonlyMap<number, string> = new Map([
  [0, "eol"],
  [1, "nop"],
  [2, "mss"],
  [3, "ws"],
  [4, "sok"],
  [5, "sack"],
  [8, "ts"],
  [19, "md5"],
  [29, "ao"],
  [30, "mptcp"],
  [34, "tfo"],
]);

function readOptions(bytes: Buffer): { names: string[]; mss: number; windowScale: number } {
  const read = { names: [] as string[], mss: 0, windowScale: -1 };
  let at = 0;
  while (at < bytes.length) {
    const kind = bytes.readUInt8(at);
    const length = kind < 2 ? 1 : at + 1 < bytes.length ? bytes.readUInt8(at + 1) : 0;
    if (length === 0 || (kind >= 2 && length < 2) || at + length > bytes.length) break;
    read.names.push(optionNames.get(kind) ?? `k${kind}`);
    if (kind === 0) break;
    if (kind === 2 && length === 4) read.mss = bytes.readUInt16BE(at + 2);
    if (kind === 3 && length === 3) read.windowScale = bytes.readUInt8(at + 2);
    at += length;
  }
  return read;
}

function joinWithin(names: readonly string[], maxLength: number): string {
  let text = "";
  for (const name of names) {
    const longer = text === "" ? name : `${text},${name}`;
    if (longer.length > maxLength) break;
    text = longer;
  }
  return text;
}

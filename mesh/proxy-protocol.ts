import { normalizeAddress } from "./cidr.ts";

/** What the start of a connection says, as far as it has come. */
export type ProxyHeader =
  /** The header is not complete: read on. */
  | { readonly state: "incomplete" }
  /** The bytes are no PROXY protocol header, or one that breaks its rules. */
  | { readonly state: "invalid"; readonly problem: string }
  /** `address` is the client's; undefined where the proxy speaks for itself (LOCAL, UNKNOWN). `length` bytes are the header's. */
  | { readonly state: "complete"; readonly length: number; readonly address: string | undefined };

/** Bytes of a version 1 header at most, its end of line included (section 2.1). */
const maxTextLength = 107;
/** Bytes of a version 2 header that we accept: addresses and a moderate number of TLVs. */
const maxBinaryLength = 16 + 2048;

const signature = Buffer.from([0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
const textStart = Buffer.from("PROXY ");

/**
 * Reads a PROXY protocol header, version 1 or 2, from the first bytes of a connection, which may arrive one by one.
 * Bounded at 2,064 bytes; everything after `length` is the connection's own.
 *
 * Source: "The PROXY protocol, versions 1 & 2" (HAProxy, 2020-03-05), sections 2.1 and 2.2.
 */
export function readProxyHeader(bytes: Buffer): ProxyHeader {
  if (isStartOf(bytes, textStart)) return readText(bytes);
  if (isStartOf(bytes, signature)) return readBinary(bytes);
  return invalid("it does not begin with a PROXY protocol header");
}

function isStartOf(bytes: Buffer, expected: Buffer): boolean {
  const length = Math.min(bytes.length, expected.length);
  return bytes.compare(expected, 0, length, 0, length) === 0;
}

function readText(bytes: Buffer): ProxyHeader {
  const end = bytes.subarray(0, maxTextLength).indexOf("\r\n");
  if (end < 0) {
    return bytes.length < maxTextLength ? { state: "incomplete" } : invalid("its first line has no end");
  }
  const length = end + 2;
  const parts = bytes.toString("latin1", 0, end).split(" ");
  const [, family, source = "", destination = "", sourcePort = "", destinationPort = ""] = parts;
  // Section 2.1: whatever follows UNKNOWN is to be ignored.
  if (family === "UNKNOWN") return { state: "complete", length, address: undefined };
  const isFamily = family === "TCP4" ? isIPv4 : family === "TCP6" ? isIPv6 : undefined;
  if (isFamily === undefined || parts.length !== 6) return invalid("its first line is not well formed");
  if (!isFamily(source) || !isFamily(destination)) return invalid("its addresses are not of its family");
  if (!isPort(sourcePort) || !isPort(destinationPort)) return invalid("its ports are not ports");
  return { state: "complete", length, address: normalizeAddress(source) };
}

function readBinary(bytes: Buffer): ProxyHeader {
  if (bytes.length < 16) return { state: "incomplete" };
  const versionAndCommand = bytes.readUInt8(12);
  if (versionAndCommand !== 0x20 && versionAndCommand !== 0x21) return invalid("its version or command is unknown");
  const length = 16 + bytes.readUInt16BE(14);
  if (length > maxBinaryLength) return invalid("it is longer than a header may be here");
  const familyAndTransport = bytes.readUInt8(13);
  const addressLength = addressLengths.get(familyAndTransport);
  if (versionAndCommand === 0x21) {
    if (addressLength === undefined) return invalid("its address family is unknown");
    if (length < 16 + addressLength) return invalid("it is shorter than its addresses");
  }
  if (bytes.length < length) return { state: "incomplete" };
  // Section 2.2: the addresses of LOCAL, and those of families that are not spoken, are to be ignored.
  if (versionAndCommand === 0x20) return { state: "complete", length, address: undefined };
  if (familyAndTransport === 0x11) return { state: "complete", length, address: [...bytes.subarray(16, 20)].join(".") };
  if (familyAndTransport !== 0x21) return { state: "complete", length, address: undefined };
  const groups = Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(16 + 2 * i).toString(16));
  return { state: "complete", length, address: normalizeAddress(groups.join(":")) };
}

/** Bytes of both addresses and ports: unspecified, TCP and UDP over IPv4 and IPv6, UNIX stream and datagram. */
const addressLengths: ReadonlyMap<number, number> = new Map([
  [0x00, 0],
  [0x11, 12],
  [0x12, 12],
  [0x21, 36],
  [0x22, 36],
  [0x31, 216],
  [0x32, 216],
]);

function invalid(problem: string): ProxyHeader {
  return { state: "invalid", problem };
}

function isIPv4(text: string): boolean {
  return (
    /^(?:\d{1,3}\.){3}\d{1,3}$/.test(text) && text.split(".").every((part) => Number(part) < 256 && !/^0\d/.test(part))
  );
}

function isIPv6(text: string): boolean {
  return /^[0-9a-fA-F:.]{2,45}$/.test(text) && text.includes(":") && normalizeAddress(text) !== undefined;
}

function isPort(text: string): boolean {
  return /^(?:0|[1-9]\d{0,4})$/.test(text) && Number(text) <= 65_535;
}

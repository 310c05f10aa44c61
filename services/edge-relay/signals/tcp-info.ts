import type { Libc } from "./libc.ts";

/**
 * What the kernel knows of a TCP connection. Round trips in microseconds, sizes in bytes; zero for what it does not
 * know.
 */
export interface TcpInfo {
  readonly minRttUs: number;
  readonly rttUs: number;
  readonly rttVarUs: number;
  readonly sendMss: number;
  readonly receiveMss: number;
  readonly advertisedMss: number;
  readonly pathMtu: number;
  readonly receiveRttUs: number;
  readonly deliveryRateBytesPerSecond: number;
}

const IPPROTO_TCP = 6;
const TCP_INFO = 11;
/** Newer kernels know more fields, and write as many as fit. */
const maxLength = 512;

/**
 * Asks the kernel for a connection's TCP_INFO. Undefined where it refuses, such as for a socket that is no TCP's; then
 * `libc.errno()` says why.
 */
export function readTcpInfo(libc: Libc, fd: number): TcpInfo | undefined {
  const bytes = Buffer.alloc(maxLength);
  const length = new Uint32Array([maxLength]);
  if (libc.getsockopt(fd, IPPROTO_TCP, TCP_INFO, bytes, length) !== 0) return undefined;
  return parseTcpInfo(bytes.subarray(0, length[0]));
}

/**
 * Reads a `struct tcp_info` of whatever length the kernel wrote; fields that it did not write are zero, and so is a
 * least round trip that it has not measured yet (all bits set).
 *
 * Source: include/uapi/linux/tcp.h, to which fields were only ever added at the end.
 */
export function parseTcpInfo(bytes: Buffer, littleEndian = isLittleEndian): TcpInfo {
  const u32 = (offset: number): number => {
    if (bytes.length < offset + 4) return 0;
    return littleEndian ? bytes.readUInt32LE(offset) : bytes.readUInt32BE(offset);
  };
  const u64 = (offset: number): number => {
    if (bytes.length < offset + 8) return 0;
    return Number(littleEndian ? bytes.readBigUInt64LE(offset) : bytes.readBigUInt64BE(offset));
  };
  const minRttUs = u32(148);
  return {
    sendMss: u32(16),
    receiveMss: u32(20),
    pathMtu: u32(60),
    rttUs: u32(68),
    rttVarUs: u32(72),
    advertisedMss: u32(84),
    receiveRttUs: u32(92),
    minRttUs: minRttUs === 0xffff_ffff ? 0 : minRttUs,
    deliveryRateBytesPerSecond: u64(160),
  };
}

const isLittleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

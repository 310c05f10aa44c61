import type { Libc } from "./libc.ts";
import { hostBytesOf, type SocketAddress } from "./socket-address.ts";

/** A raw socket that receives ICMP echo replies. Its functions never block. */
export interface IcmpSocket {
  /** Sends a message; false where the kernel refuses. */
  send(message: Buffer, to: SocketAddress): boolean;
  /**
   * What came, or undefined where nothing did. `from` is the sender's address, `timeNs` when the kernel received
   * it.
   */
  receive(): { packet: Buffer; from: Buffer; timeNs: bigint } | undefined;
  /** Now, on the clock of `timeNs`. */
  nowNs(): bigint;
  close(): void;
}

const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const IPPROTO_ICMP = 1;
const IPPROTO_ICMPV6 = 58;
const SOL_RAW = 255;
const ICMP_FILTER = 1;
const ICMPV6_FILTER = 1;
const SIOCGSTAMPNS = 0x8907;
const CLOCK_REALTIME = 0;

/** Larger than any reply to what is sent here; the rest of a longer packet is cut off. */
const maxPacketLength = 1_024;

/**
 * Opens a raw ICMP socket, for which the kernel asks CAP_NET_RAW. Gives the number of the error where it refuses.
 *
 * Replies are timed by the kernel as it receives them, so that neither a busy event loop nor how seldom we look
 * lengthens a round trip; where it tells no time, by when we look.
 */
export function openIcmpSocket(libc: Libc, version: 4 | 6): IcmpSocket | { readonly errno: number } {
  const [domain, protocol] = version === 4 ? [AF_INET, IPPROTO_ICMP] : [AF_INET6, IPPROTO_ICMPV6];
  const fd = libc.socket(domain, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
  if (fd < 0) return { errno: libc.errno() };
  admitRepliesOnly(libc, fd, version);
  const time = createTimespec();
  // The first question is what has the kernel put the times of packets down.
  libc.ioctl(fd, SIOCGSTAMPNS, time.bytes);
  const nowNs = (): bigint => {
    libc.clock_gettime(CLOCK_REALTIME, time.bytes);
    return time.read();
  };
  const packet = Buffer.alloc(maxPacketLength);
  const from = Buffer.alloc(28);
  const fromLength = new Uint32Array(1);
  return {
    send(message, to) {
      return libc.sendto(fd, message, message.length, 0, to.bytes, to.bytes.length) === message.length;
    },
    receive() {
      fromLength[0] = from.length;
      const length = libc.recvfrom(fd, packet, packet.length, 0, from, fromLength);
      if (length < 0) return undefined;
      const timeNs = libc.ioctl(fd, SIOCGSTAMPNS, time.bytes) === 0 ? time.read() : nowNs();
      const host = hostBytesOf(version, from.subarray(0, fromLength[0]));
      return { packet: packet.subarray(0, length), from: host ?? Buffer.alloc(0), timeNs };
    },
    nowNs,
    close() {
      libc.close(fd);
    },
  };
}

/** Has the kernel drop whatever else comes by ICMP, which we would only throw away. */
function admitRepliesOnly(libc: Libc, fd: number, version: 4 | 6): void {
  const filter = Buffer.from(new Uint32Array(version === 4 ? 1 : 8).fill(0xffff_ffff).buffer);
  const words = new Uint32Array(filter.buffer);
  const reply = version === 4 ? 0 : 129;
  words[reply >> 5]! &= ~(1 << (reply & 31));
  if (version === 4) libc.setsockopt(fd, SOL_RAW, ICMP_FILTER, filter, filter.length);
  else libc.setsockopt(fd, IPPROTO_ICMPV6, ICMPV6_FILTER, filter, filter.length);
}

/** Space for the C library's `struct timespec`: two longs, of 64 bits except on 32-bit machines. */
function createTimespec(): { readonly bytes: Buffer; read(): bigint } {
  const bytes = Buffer.alloc(16);
  const is32Bit = process.arch === "arm" || process.arch === "ia32";
  const words = is32Bit
    ? new Int32Array(bytes.buffer, bytes.byteOffset, 2)
    : new BigInt64Array(bytes.buffer, bytes.byteOffset, 2);
  return { bytes, read: () => BigInt(words[0] ?? 0) * 1_000_000_000n + BigInt(words[1] ?? 0) };
}

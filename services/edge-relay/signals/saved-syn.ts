import type { Libc } from "./libc.ts";

const IPPROTO_TCP = 6;
const TCP_SAVE_SYN = 27;
const TCP_SAVED_SYN = 28;
/** An IPv4 header is 60 bytes at most, an IPv6 header with extensions rarely more, and a TCP header 60. */
const maxLength = 512;

/** Has the kernel keep the SYN of each connection to a listening socket from now on. False where it refuses. */
export function saveSyns(libc: Libc, listeningFd: number): boolean {
  const on = Buffer.alloc(4);
  on.fill(new Uint8Array(new Uint32Array([1]).buffer));
  return libc.setsockopt(listeningFd, IPPROTO_TCP, TCP_SAVE_SYN, on, on.length) === 0;
}

/**
 * Takes the SYN of an accepted connection, IP header first, which the kernel gives out once. Undefined where it kept
 * none: the connection began before `saveSyns`, or came by a SYN cookie.
 */
export function takeSavedSyn(libc: Libc, fd: number): Buffer | undefined {
  const bytes = Buffer.alloc(maxLength);
  const length = new Uint32Array([maxLength]);
  if (libc.getsockopt(fd, IPPROTO_TCP, TCP_SAVED_SYN, bytes, length) !== 0) return undefined;
  const taken = length[0] ?? 0;
  return taken === 0 ? undefined : bytes.subarray(0, taken);
}

import { createRequire } from "node:module";
import { ConnectionTiming_Degradation as Degradation } from "@octomesh/proto/octomesh/edge/v1/connection_pb";

/** The few functions of the C library that signals need. All return -1 where the kernel refuses; see `errno`. */
export interface Libc {
  getsockopt(fd: number, level: number, option: number, value: Buffer, length: Uint32Array): number;
  setsockopt(fd: number, level: number, option: number, value: Buffer, length: number): number;
  socket(domain: number, type: number, protocol: number): number;
  close(fd: number): number;
  sendto(fd: number, bytes: Buffer, length: number, flags: number, address: Buffer, addressLength: number): number;
  recvfrom(
    fd: number,
    bytes: Buffer,
    length: number,
    flags: number,
    address: Buffer,
    addressLength: Uint32Array,
  ): number;
  ioctl(fd: number, request: number, value: Buffer): number;
  clock_gettime(clock: number, value: Buffer): number;
  /** The error number of the last call that failed, right after it. */
  errno(): number;
}

/** The C library, or why there is none. */
export type LibcResult =
  | { readonly libc: Libc; readonly degradation?: undefined }
  | { readonly libc?: undefined; readonly degradation: Degradation; readonly problem: string };

/**
 * Opens the C library of a Linux machine, glibc or the one that Node itself is linked with (musl). It loads what
 * calls C only here, so that an edge elsewhere runs without: NOT_LINUX on other systems, UNAVAILABLE where it cannot
 * be loaded.
 */
export function openLibc(platform: NodeJS.Platform = process.platform, load: () => Koffi = loadKoffi): LibcResult {
  if (platform !== "linux") return { degradation: Degradation.NOT_LINUX, problem: `the system is ${platform}` };
  try {
    return { libc: bindLibc(load()) };
  } catch (error) {
    return { degradation: Degradation.UNAVAILABLE, problem: error instanceof Error ? error.message : String(error) };
  }
}

type Koffi = typeof import("koffi");

function loadKoffi(): Koffi {
  return createRequire(import.meta.url)("koffi");
}

function bindLibc(koffi: Koffi): Libc {
  const library = loadFirst(koffi, ["libc.so.6", null]);
  return {
    getsockopt: library.func("int getsockopt(int, int, int, void *, uint32_t *)"),
    setsockopt: library.func("int setsockopt(int, int, int, const void *, uint32_t)"),
    socket: library.func("int socket(int, int, int)"),
    close: library.func("int close(int)"),
    sendto: library.func("long sendto(int, const void *, size_t, int, const void *, uint32_t)"),
    recvfrom: library.func("long recvfrom(int, void *, size_t, int, void *, uint32_t *)"),
    ioctl: bindIoctl(library),
    clock_gettime: library.func("int clock_gettime(int, void *)"),
    errno: () => koffi.errno(),
  };
}

/** `ioctl` is variadic, for which some machines call differently. */
function bindIoctl(library: import("koffi").LibraryHandle): Libc["ioctl"] {
  const ioctl = library.func("int ioctl(int, unsigned long, ...)");
  return (fd, request, value) => ioctl(fd, request, "void *", value) as number;
}

function loadFirst(koffi: Koffi, names: readonly (string | null)[]): import("koffi").LibraryHandle {
  let failure: unknown;
  for (const name of names) {
    try {
      return koffi.load(name);
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}

/** Numbers of errors, the same on every Linux: what a caller may not do, what it must wait for. */
export const errorNumbers = { EPERM: 1, EAGAIN: 11, EACCES: 13 } as const;

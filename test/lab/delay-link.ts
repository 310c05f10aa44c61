import { closeSync, constants, openSync, readSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

/** One delay link between two network namespaces, as a point-to-point network of two addresses. */
export interface DelayLink {
  /** The ends: a namespace's name (as `ip netns` has it), its device's name (<= 15 characters) and its IPv4 address. */
  readonly ends: readonly [DelayLinkEnd, DelayLinkEnd];
  /** Round trip in ms, 0 to 10,000; half of it each way. */
  readonly rtt: number;
  /** Mean of the extra, exponentially distributed delay of each packet in ms, 0 by default. Order is kept. */
  readonly jitter?: number;
  /** Greatest packet in bytes, 576 to 65,535; 1,500 by default. */
  readonly mtu?: number;
}

/** One end of a delay link. */
export interface DelayLinkEnd {
  readonly namespace: string;
  readonly device: string;
  readonly address: string;
}

interface Packet {
  readonly due: number;
  readonly bytes: Buffer;
}

interface Direction {
  readonly from: number;
  readonly to: number;
  readonly delayMs: number;
  readonly jitterMs: number;
  /** In order of `due`: order is kept, so a queue is enough. */
  readonly queue: Packet[];
  last: number;
}

/** As much as a link holds in each direction; what comes beyond is lost, as in a router. */
const greatestQueue = 10_000;
const cloneNewNet = 0x4000_0000;
const tunSetIff = 0x4004_54ca;
const iffTun = 0x0001;
const iffNoPi = 0x1000;
const pollIn = 0x001;
/** A sleeping process wakes late by about this much (ms): it wakes that much earlier and spins for the rest. */
const spinMs = 0.15;

/**
 * Makes the devices, prints `{"ready":true}` and carries packets until standard input ends, or for `lifeMs`. For a
 * process of its own: it enters namespaces and never gives the event loop its turn. Linux, as root.
 */
export function carryDelayLinks(links: readonly DelayLink[], options: { lifeMs: number }): void {
  const system = openSystem();
  const home = openSync("/proc/self/ns/net", constants.O_RDONLY);
  const directions: Direction[] = [];
  for (const link of links) {
    const [one, two] = link.ends.map((end) => openTun(system, home, end)) as [number, number];
    const shared = { delayMs: link.rtt / 2, jitterMs: link.jitter ?? 0 };
    directions.push({ from: one, to: two, ...shared, queue: [], last: 0 });
    directions.push({ from: two, to: one, ...shared, queue: [], last: 0 });
  }
  closeSync(home);
  writeSync(1, `${JSON.stringify({ ready: true })}\n`);
  carry(system, directions, options.lifeMs);
}

/** Reads what came, sends what is due, sleeps to just before the next; ends with standard input or its time. */
function carry(system: System, directions: readonly Direction[], lifeMs: number): void {
  // struct pollfd { int fd; short events; short revents; }, standard input last.
  const polled = Buffer.alloc((directions.length + 1) * 8);
  for (const [index, fd] of [...directions.map(({ from }) => from), 0].entries()) {
    polled.writeInt32LE(fd, index * 8);
    polled.writeInt16LE(pollIn, index * 8 + 4);
  }
  const timeout = Buffer.alloc(16);
  const scratch = Buffer.alloc(65_536);
  const end = performance.now() + lifeMs;
  for (;;) {
    const now = performance.now();
    if (now >= end) return;
    let next = now + 1_000;
    for (const { queue } of directions) if (queue[0] !== undefined) next = Math.min(next, queue[0].due);
    const sleepMs = Math.max(0, Math.min(next - now - spinMs, 1_000));
    timeout.writeBigInt64LE(BigInt(Math.floor(sleepMs / 1_000)), 0);
    timeout.writeBigInt64LE(BigInt(Math.floor((sleepMs % 1_000) * 1e6)), 8);
    if (system.ppoll(polled, directions.length + 1, timeout, null) > 0) {
      for (const [index, direction] of directions.entries()) {
        if (polled.readInt16LE(index * 8 + 6) !== 0) take(direction, scratch);
      }
      if (polled.readInt16LE(directions.length * 8 + 6) !== 0 && ended(scratch)) return;
    }
    for (const direction of directions) give(direction);
  }
}

/** Takes up to 64 packets that wait at one end. */
function take(direction: Direction, scratch: Buffer): void {
  for (let count = 0; count < 64; count += 1) {
    const length = attempt(() => readSync(direction.from, scratch));
    if (length === 0) return;
    const extra = direction.jitterMs === 0 ? 0 : -Math.log(1 - Math.random()) * direction.jitterMs;
    const due = Math.max(performance.now() + direction.delayMs + extra, direction.last);
    if (direction.queue.length >= greatestQueue) continue;
    direction.last = due;
    direction.queue.push({ due, bytes: Buffer.from(scratch.subarray(0, length)) });
  }
}

/** Puts out what is due at the other end. */
function give(direction: Direction): void {
  for (let first = direction.queue[0]; first !== undefined; first = direction.queue[0]) {
    if (first.due > performance.now()) return;
    direction.queue.shift();
    const { bytes } = first;
    attempt(() => writeSync(direction.to, bytes));
  }
}

function ended(scratch: Buffer): boolean {
  try {
    return readSync(0, scratch) === 0;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== "EAGAIN";
  }
}

/** 0 where there is nothing to read, or the device is down or full: a packet lost, as on any network. */
function attempt(operation: () => number): number {
  try {
    return operation();
  } catch {
    return 0;
  }
}

function openSystem() {
  const koffi = createRequire(import.meta.url)("koffi") as typeof import("koffi");
  const libc = koffi.load("libc.so.6");
  return {
    setns: libc.func("int setns(int fd, int type)") as (fd: number, type: number) => number,
    ioctl: libc.func("int ioctl(int fd, unsigned long request, void *data)") as (
      fd: number,
      request: number,
      data: Buffer,
    ) => number,
    ppoll: libc.func("int ppoll(_Inout_ void *fds, unsigned long count, const void *timeout, const void *mask)") as (
      fds: Buffer,
      count: number,
      timeout: Buffer,
      mask: null,
    ) => number,
    errno: () => koffi.errno(),
  };
}
type System = ReturnType<typeof openSystem>;

/** Opens a TUN device in a namespace and comes back to `home`; the device lives as long as the descriptor. */
function openTun(system: System, home: number, end: DelayLinkEnd): number {
  const namespace = openSync(`/var/run/netns/${end.namespace}`, constants.O_RDONLY);
  enter(system, namespace);
  closeSync(namespace);
  try {
    const fd = openSync("/dev/net/tun", constants.O_RDWR | constants.O_NONBLOCK);
    const request = Buffer.alloc(40);
    request.write(end.device, 0, 15, "latin1");
    request.writeInt16LE(iffTun | iffNoPi, 16);
    if (system.ioctl(fd, tunSetIff, request) !== 0) throw new Error(`TUNSETIFF ${end.device}: errno ${system.errno()}`);
    return fd;
  } finally {
    enter(system, home);
  }
}

// A namespace belongs to a thread; a direct koffi call and Node's synchronous file calls are both on the main one.
function enter(system: System, fd: number): void {
  if (system.setns(fd, cloneNewNet) !== 0) throw new Error(`setns: errno ${system.errno()}`);
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { links, lifeMs } = JSON.parse(process.argv[2] ?? "{}") as { links: DelayLink[]; lifeMs: number };
  carryDelayLinks(links, { lifeMs });
  process.exit(0);
}

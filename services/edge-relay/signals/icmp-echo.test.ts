import { randomBytes } from "node:crypto";
import { pino } from "pino";
import { afterEach, describe, expect, it } from "vitest";
import { createIcmpEcho, type IcmpEcho } from "./icmp-echo.ts";
import { parseEchoReply, writeEchoRequest } from "./icmp-packet.ts";
import { openIcmpSocket } from "./icmp-socket.ts";
import { type Libc, openLibc } from "./libc.ts";
import { socketAddressFrom } from "./socket-address.ts";

const log = pino({ level: "silent" });
const opened: IcmpEcho[] = [];

afterEach(() => {
  for (const echo of opened.splice(0)) echo.close();
});

function open(options: Partial<Parameters<typeof createIcmpEcho>[0]> = {}): IcmpEcho {
  const echo = createIcmpEcho({ log, ...options });
  opened.push(echo);
  return echo;
}

/** Without CAP_NET_RAW there is nothing to ping with; what then happens is tested by "without permission" below. */
const available = open().available;

describe.skipIf(!available)("ICMP echo", () => {
  it("times this machine, over IPv4 and IPv6, in microseconds", async () => {
    const echo = open();
    for (const address of ["127.0.0.1", "::1", "::ffff:127.0.0.1"]) {
      const rttUs = await echo.ping(address, { count: 3, timeoutMs: 5_000 });
      // A bound that only a wrong unit or clock breaks.
      expect(rttUs).toBeLessThan(1_000_000);
      expect(rttUs).toBeGreaterThan(0);
      expect(Number.isInteger(rttUs)).toBe(true);
    }
  });

  it("pings many addresses at a time, and no more than 256", async () => {
    const echo = open();
    const addresses = Array.from({ length: 300 }, (_, i) => `127.1.${i >> 8}.${(i & 255) + 1}`).filter(
      (address) => !address.endsWith(".256"),
    );
    const results = await Promise.all(addresses.map((address) => echo.ping(address, { count: 2, timeoutMs: 10_000 })));
    expect(results.slice(0, 256).every((rttUs) => rttUs !== undefined)).toBe(true);
    expect(results.slice(256).every((rttUs) => rttUs === undefined)).toBe(true);
    expect(await echo.ping("127.0.0.1", { count: 1, timeoutMs: 5_000 })).toBeDefined();
  });

  it("asks an address once at a time, and gives everybody the answer", async () => {
    let payloads = 0;
    const echo = open({
      randomBytes(length) {
        if (length > 2) payloads += 1;
        return randomBytes(length);
      },
    });
    const asked = Array.from({ length: 10 }, () => echo.ping("127.0.0.1", { count: 2, timeoutMs: 5_000 }));
    const [first, ...others] = await Promise.all(asked);
    expect(first).toBeDefined();
    expect(others.every((rttUs) => rttUs === first)).toBe(true);
    expect(payloads).toBe(2);
  });

  it("gives up in time where nothing answers, at once where told to, and where it is closed", async () => {
    // Nothing leaves: there may be machines on the way that answer for any address.
    const echo = open({ libc: { libc: { ...openLibc().libc!, sendto: (_, __, length) => length } } });
    expect(await echo.ping("192.0.2.1", { count: 1, timeoutMs: 50 })).toBeUndefined();
    const stop = new AbortController();
    const stopped = echo.ping("192.0.2.1", { count: 1, timeoutMs: 10_000, signal: stop.signal });
    stop.abort();
    expect(await stopped).toBeUndefined();
    expect(await echo.ping("127.0.0.1", { count: 1, timeoutMs: 5_000, signal: stop.signal })).toBeUndefined();
    const left = echo.ping("192.0.2.1", { count: 1, timeoutMs: 10_000 });
    echo.close();
    expect(await left).toBeUndefined();
    expect(await echo.ping("127.0.0.1", { count: 1, timeoutMs: 5_000 })).toBeUndefined();
  });

  it("pings no group of machines, and nothing that is no address", async () => {
    const echo = open();
    const bad = ["", "0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1", "fe80::1", "localhost", "127.1"];
    for (const address of [...bad, "1".repeat(100)]) {
      expect(await echo.ping(address, { count: 1, timeoutMs: 5_000 })).toBeUndefined();
    }
    for (const count of [0, -1, Number.NaN]) {
      expect(await echo.ping("127.0.0.1", { count, timeoutMs: 5_000 })).toBeUndefined();
    }
    expect(await echo.ping("127.0.0.1", { count: 1, timeoutMs: Number.NaN })).toBeUndefined();
  });

  it("takes no reply whose payload is not what it sent", async () => {
    const real = openLibc().libc!;
    const forging: Libc = {
      ...real,
      sendto(fd, bytes, length, ...rest) {
        // As sent by somebody who guesses the id and sequence number alone: the checksum stays right.
        const forged = Buffer.from(bytes);
        const [a, b] = [forged.readUInt16BE(8), forged.readUInt16BE(10)];
        forged.writeUInt16BE(b, 8);
        forged.writeUInt16BE(a, 10);
        return real.sendto(fd, forged, length, ...rest);
      },
    };
    const counter = { value: 0 };
    const distinct = (length: number) => Buffer.from(Array.from({ length }, () => counter.value++ & 255));
    const echo = open({ libc: { libc: forging }, randomBytes: distinct });
    expect(await echo.ping("127.0.0.1", { count: 2, timeoutMs: 200 })).toBeUndefined();
  });

  it("is timed by the kernel, however late one looks", () => {
    const socket = openIcmpSocket(openLibc().libc!, 4);
    if ("errno" in socket) throw new Error(`no socket: error ${socket.errno}`);
    try {
      expect(socket.receive()).toBeUndefined();
      const payload = randomBytes(32);
      const sentNs = socket.nowNs();
      expect(socket.send(writeEchoRequest(4, 1, 1, payload), socketAddressFrom("127.0.0.1")!)).toBe(true);
      // Late on purpose: the reply is long there.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
      const looksNs = socket.nowNs();
      let received = socket.receive();
      while (received !== undefined && !parseEchoReply(4, received.packet)?.payload.equals(payload)) {
        received = socket.receive();
      }
      expect(received?.timeNs).toBeGreaterThan(sentNs);
      expect(received?.timeNs).toBeLessThan(looksNs);
    } finally {
      socket.close();
    }
  });
});

describe("without permission", () => {
  it("says so once and answers nothing", async () => {
    const lines: string[] = [];
    const told = pino({ level: "info" }, { write: (line) => lines.push(line) });
    const real = openLibc();
    const refused = { ...real.libc, socket: () => -1, errno: () => 1 } as Libc;
    for (const libc of [{ libc: refused }, openLibc("darwin")]) {
      lines.length = 0;
      const echo = open({ log: told, libc });
      expect(echo.available).toBe(false);
      expect(await echo.ping("127.0.0.1", { count: 1, timeoutMs: 5_000 })).toBeUndefined();
      expect(lines).toHaveLength(1);
    }
  });
});

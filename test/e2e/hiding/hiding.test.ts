import { describe, expect, it } from "vitest";
import { capture, captureAvailable, timesOf } from "../../lab/capture.ts";
import { type HidingKind, hidingKinds } from "../../lab/intermediary.ts";
import { alarmOf, isAtLeast } from "../../lab/judge.ts";

const missing = captureAvailable(hidingKinds);
const skip = missing.length > 0 && process.env.CI !== "true";
const limitMs = 100_000;

describe.skipIf(skip)(`connections that hide${skip ? ` (missing: ${missing.join(", ")})` : ""}`, () => {
  /** A session with its pings: a machine that is busy for the collector's 2 s leaves too few, and is given other tries. */
  const session = async (kind: HidingKind, legMs: number, edgeMs = 40) => {
    for (let tries = 1; ; tries += 1) {
      const [captured] = await capture({ kind, legMs, edgeMs });
      if (captured === undefined) throw new Error("no session");
      const { gapMs, ...times } = timesOf(captured.bundle);
      if (tries < 3 && times.pings < 10) continue;
      if (gapMs === undefined) throw new Error("the browser answered no ping");
      expect(times.pings).toBeGreaterThanOrEqual(10);
      expect(captured.bundle.connection?.clientHello?.ja4).toMatch(/^t13/);
      return { ...times, gapMs, alarm: await alarmOf(captured.bundle) };
    }
  };

  it("1. nothing is missing", () => expect(missing).toEqual([]));

  it.each([
    ["2. a direct connection", "direct", 0],
    ["3. one through the router of a home", "nat", 10],
  ] as const)(
    "%s has no gap, whole segments, and no alarm that matters",
    async (_name, kind, legMs) => {
      const { gapMs, tcpMs, mss, alarm } = await session(kind, legMs);
      expect(gapMs).toBeLessThan(5);
      expect(tcpMs).toBeGreaterThan(40 + legMs - 1);
      expect(mss).toBe(1_460);
      expect(isAtLeast(alarm, "medium"), alarm).toBe(false);
    },
    limitMs,
  );

  it.each([
    ["4. a CONNECT proxy", "connect", 60, 40],
    ["5. a SOCKS5 proxy that is near", "socks", 15, 40],
  ] as const)(
    "%s shows its leg as the gap, and raises an alarm",
    async (_name, kind, legMs, edgeMs) => {
      const { gapMs, tcpMs, helloMs, alarm } = await session(kind, legMs, edgeMs);
      expect(gapMs).toBeGreaterThan(legMs - 2);
      // A proxy that holds a small segment back until the one before is acknowledged adds a round trip to the edge.
      expect(gapMs).toBeLessThan(legMs + edgeMs + 5);
      // The kernel sees the proxy alone, and the browser waits for the proxy's word before its ClientHello.
      expect(tcpMs).toBeLessThan(edgeMs + 5);
      expect(helloMs).toBeGreaterThan(legMs / 2);
      expect(isAtLeast(alarm, "medium"), alarm).toBe(true);
    },
    limitMs,
  );

  it.each([
    ["6. OpenVPN", "openvpn", 1_400],
    ["7. WireGuard", "wireguard", 1_380],
  ] as const)(
    "%s has no gap, but smaller segments and an exit that answers sooner, and raises an alarm",
    async (_name, kind, segment) => {
      const { gapMs, tcpMs, icmpMs, mss, alarm } = await session(kind, 60);
      expect(gapMs).toBeLessThan(5);
      expect(tcpMs).toBeGreaterThan(99);
      expect(mss).toBe(segment);
      expect(icmpMs).toBeDefined();
      expect(tcpMs - (icmpMs ?? tcpMs)).toBeGreaterThan(15);
      expect(isAtLeast(alarm, "medium"), alarm).toBe(true);
    },
    limitMs,
  );
});

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatDuration, parseDuration } from "./duration.ts";

describe("a duration", () => {
  it.each([
    ["48h", 172_800_000],
    ["15m", 900_000],
    ["30s", 30_000],
    ["500ms", 500],
    ["7d", 604_800_000],
    ["1h30m", 5_400_000],
    ["0s", 0],
    ["1m500ms", 60_500],
  ])("of %s is %i ms", (text, ms) => {
    expect(parseDuration(text)).toBe(ms);
  });

  it.each([
    "",
    "48",
    "h",
    "48 h",
    "-1h",
    "1.5h",
    "1H",
    "1w",
    "48hours",
    "1e3s",
    "99999d",
    "1h ",
    "\n1h",
    "1h\n",
    "1m".repeat(20),
  ])("is not %j", (text) => {
    expect(parseDuration(text)).toBeUndefined();
  });

  it("is read as it is written", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 3660 * 86_400_000 }), (ms) => {
        expect(parseDuration(formatDuration(ms))).toBe(ms);
      }),
    );
    expect(formatDuration(0)).toBe("0s");
    expect(formatDuration(90_061_001)).toBe("1d1h1m1s1ms");
  });

  it("is never read from anything else", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        const ms = parseDuration(text);
        expect(ms === undefined || (Number.isInteger(ms) && ms >= 0)).toBe(true);
      }),
    );
  });
});

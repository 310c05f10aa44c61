import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CommandError } from "./command-error.ts";
import { formatDuration, parseDuration } from "./parse-duration.ts";

describe("parseDuration", () => {
  test.each([
    ["30s", 30],
    ["15m", 900],
    ["48h", 172_800],
    ["90d", 7_776_000],
    ["2w", 1_209_600],
    ["1h30m", 5_400],
    ["1d12h", 129_600],
    ["48H", 172_800],
  ])("reads %s as %i seconds", (text, seconds) => {
    expect(parseDuration(text)).toBe(seconds);
  });

  test.each(["", "48", "h", "1.5h", "-1h", "1 h", "0s", "1y", "999999999w", "1h-1m"])("refuses %j", (text) => {
    expect(() => parseDuration(text)).toThrow(CommandError);
  });

  test("answers any text with whole seconds or a usage error", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          expect(Number.isInteger(parseDuration(text))).toBe(true);
        } catch (error) {
          expect(error).toBeInstanceOf(CommandError);
        }
      }),
    );
  });
});

describe("formatDuration", () => {
  test.each([
    [0, "0s"],
    [30, "30s"],
    [90, "1m30s"],
    [5_400, "1h30m"],
    [86_400, "24h"],
    [172_800, "48h"],
    [7_776_000, "90d"],
    [2_592_000, "30d"],
  ])("writes %i seconds as %s", (seconds, text) => {
    expect(formatDuration(seconds)).toBe(text);
  });

  test("reads back whole hours and days as they were", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 10_000 }), (hours) => {
        expect(parseDuration(formatDuration(hours * 3600))).toBe(hours * 3600);
      }),
    );
  });
});

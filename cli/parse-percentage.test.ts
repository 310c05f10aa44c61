import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CommandError } from "./command-error.ts";
import { formatPercentage, parsePercentage } from "./parse-percentage.ts";

describe("parsePercentage", () => {
  test.each([
    ["0", 0],
    ["10", 10_000],
    ["12.5", 12_500],
    ["33.333", 33_333],
    ["0.001", 1],
    ["99.999", 99_999],
    ["100", 100_000],
    ["100.000", 100_000],
    ["50%", 50_000],
    ["50 %", 50_000],
    ["12.5000", 12_500],
    [" 7 ", 7_000],
  ])("reads %s as %i thousandths", (text, thousandths) => {
    expect(parsePercentage(text)).toBe(thousandths);
  });

  test.each(["", "-1", "+1", "100.001", "101", "1e2", "0x10", "ten", "1,5", "12.3456", ".5", "5.", "NaN", "1 0"])(
    "refuses %j as a usage error",
    (text) => {
      expect(() => parsePercentage(text)).toThrow(CommandError);
    },
  );

  test("reads back every thousandth that it can write, exactly", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 100_000 }), (thousandths) => {
        expect(parsePercentage(formatPercentage(thousandths))).toBe(thousandths);
      }),
    );
  });

  test("answers any text with thousandths in bounds or a usage error", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          const value = parsePercentage(text);
          expect(Number.isInteger(value) && value >= 0 && value <= 100_000).toBe(true);
        } catch (error) {
          expect(error).toBeInstanceOf(CommandError);
        }
      }),
    );
  });
});

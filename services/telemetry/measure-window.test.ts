import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { batchMemoryMs, minuteOf, defaultMeasureWindow as window } from "./measure-window.ts";

const now = Date.UTC(2026, 4, 1, 12, 30, 31, 250);
const minute = 60_000;

describe("minuteOf", () => {
  it("rounds a measure time down to its minute", () => {
    expect(minuteOf(now - 5 * minute, now, window)).toBe(Date.UTC(2026, 4, 1, 12, 25));
  });

  it("counts a time that is not yet as the time of receipt", () => {
    expect(minuteOf(now + 1, now, window)).toBe(Date.UTC(2026, 4, 1, 12, 30));
    expect(minuteOf(now + window.futureMs, now, window)).toBe(Date.UTC(2026, 4, 1, 12, 30));
  });

  it("knows no minute outside the window", () => {
    expect(minuteOf(now - window.pastMs, now, window)).toBeDefined();
    expect(minuteOf(now - window.pastMs - 1, now, window)).toBeUndefined();
    expect(minuteOf(now + window.futureMs + 1, now, window)).toBeUndefined();
    expect(minuteOf(Number.NaN, now, window)).toBeUndefined();
  });

  it("takes no report again once its batch may be forgotten", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: -window.pastMs, max: window.futureMs }),
        fc.integer({ min: 0, max: 100 * 86_400_000 }),
        (offset, later) => {
          const measured = now + offset;
          fc.pre(minuteOf(measured, now, window) !== undefined);
          const repeated = now + batchMemoryMs(window) + later;
          expect(minuteOf(measured, repeated, window)).toBeUndefined();
        },
      ),
    );
  });
});

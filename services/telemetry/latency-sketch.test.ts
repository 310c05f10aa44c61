import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  addMeasurement,
  emptySketch,
  type LatencySketch,
  mergeSketch,
  quantilesOf,
  relativeAccuracy,
  smallestMs,
} from "./latency-sketch.ts";

const quantiles = [0, 0.25, 0.5, 0.95, 0.99, 1];
const milliseconds = fc.oneof(
  fc.double({ min: 0, max: 3_600_000, noNaN: true }),
  fc.double({ min: 0, max: 10, noNaN: true }),
  fc.integer({ min: -4, max: 6 }).map((power) => 10 ** power),
);

function sketchOf(values: readonly number[]): LatencySketch {
  const sketch = emptySketch();
  for (const value of values) addMeasurement(sketch, value);
  return sketch;
}

/** The quantile as DDSketch defines it: the value of rank floor(q (n - 1)). */
function exactQuantile(values: readonly number[], quantile: number): number {
  return [...values].sort((a, b) => a - b)[Math.floor(quantile * (values.length - 1))] ?? 0;
}

describe("a latency sketch", () => {
  it("answers every quantile within 1 % of a measurement, and within a microsecond where one is shorter", () => {
    fc.assert(
      fc.property(fc.array(milliseconds, { minLength: 1, maxLength: 400 }), (values) => {
        const found = quantilesOf(sketchOf(values), quantiles);
        for (const [index, quantile] of quantiles.entries()) {
          const exact = exactQuantile(values, quantile);
          const allowed = exact < smallestMs ? smallestMs : exact * (relativeAccuracy + 1e-9);
          expect(Math.abs((found[index] ?? Number.NaN) - exact)).toBeLessThanOrEqual(allowed);
        }
      }),
    );
  });

  it("is the same whether measurements are added to one or to several that are merged, in any order", () => {
    fc.assert(
      fc.property(fc.array(fc.array(milliseconds, { maxLength: 50 }), { maxLength: 8 }), (groups) => {
        const merged = emptySketch();
        for (const group of [...groups].reverse()) mergeSketch(merged, sketchOf(group));
        const whole = sketchOf(groups.flat());
        expect(merged.zeros).toBe(whole.zeros);
        expect(new Map([...merged.bins].sort())).toEqual(new Map([...whole.bins].sort()));
      }),
    );
  });

  it("has bins that fit a smallint, and few enough of them, whatever is measured", () => {
    const { bins } = sketchOf([smallestMs, 3_600_000]);
    const [low = Number.NaN, high = Number.NaN] = [...bins.keys()];
    expect(low).toBeGreaterThan(-1000);
    expect(high).toBeLessThan(1000);
    expect(high - low).toBeLessThan(1200);
  });

  it("answers zeros where nothing was measured", () => {
    expect(quantilesOf(emptySketch(), [0.5, 0.99])).toEqual([0, 0]);
  });
});

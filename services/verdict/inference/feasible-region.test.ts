import fc from "fast-check";
import { expect, test } from "vitest";
import { type Disk, reachKm } from "./distance-evidence.ts";
import { feasibleRegion } from "./feasible-region.ts";
import { destination, distanceKm, kmPerRoundTripMs } from "./great-circle.ts";

const point = fc.record({
  latitude: fc.double({ min: -85, max: 85, noNaN: true }),
  longitude: fc.double({ min: -180, max: 180, noNaN: true }),
});

test("a region is the rim of what all round trips from a true place reach", () => {
  const extraMs = fc.double({ min: 0, max: 20, noNaN: true });
  fc.assert(
    fc.property(point, fc.array(fc.tuple(point, extraMs), { minLength: 1, maxLength: 8 }), (truth, sources) => {
      const disks: Disk[] = sources.map(([centre, extra]) => ({
        centre,
        rttMs: distanceKm(centre, truth) / kmPerRoundTripMs + extra,
      }));
      const narrow = disks.filter((disk) => reachKm(disk) < 10_019);
      const region = feasibleRegion(disks);
      expect(region).toHaveLength(narrow.length === 0 ? 0 : 64);
      for (const vertex of region) {
        // Every vertex is in all disks, and on the rim of one.
        const misses = narrow.map((disk) => distanceKm(vertex, disk.centre) - reachKm(disk));
        expect(Math.max(...misses)).toBeGreaterThan(-1);
        expect(Math.max(...misses)).toBeLessThan(1);
      }
    }),
  );
});

test("round trips that contradict each other leave the smallest disk", () => {
  const far: Disk[] = [
    { centre: { latitude: 52, longitude: 13 }, rttMs: 3 },
    { centre: { latitude: -33, longitude: 151 }, rttMs: 5 },
  ];
  const region = feasibleRegion(far);
  expect(region).toHaveLength(64);
  for (const vertex of region)
    expect(distanceKm(vertex, { latitude: 52, longitude: 13 })).toBeCloseTo(5 * 99.931 * 1.005, 0);
});

test("round trips that reach the whole globe bound nothing", () => {
  expect(feasibleRegion([{ centre: { latitude: 0, longitude: 0 }, rttMs: 250 }])).toEqual([]);
  expect(feasibleRegion([])).toEqual([]);
});

test("a destination is as far as asked", () => {
  fc.assert(
    fc.property(
      point,
      fc.double({ min: 0, max: 6.28, noNaN: true }),
      fc.double({ min: 1, max: 19_000, noNaN: true }),
      (from, bearing, km) => {
        expect(Math.abs(distanceKm(from, destination(from, bearing, km)) - km)).toBeLessThan(0.1);
      },
    ),
  );
});

import { type CountryFacts, leastDistanceKm } from "./country-facts.ts";
import { distanceKm, kmPerRoundTripMs, maxDistanceKm, type Point } from "./great-circle.ts";
import { interpolate } from "./hypotheses.ts";

/** A round trip, in milliseconds, from a known position. */
export interface Disk {
  readonly centre: Point;
  readonly rttMs: number;
}

/** Furthest that the far end of a round trip can be: 2/3 c, with 2 ms and 0.5 % to spare. */
export function reachKm({ rttMs }: Disk): number {
  return Math.min(maxDistanceKm, (rttMs + 2) * kmPerRoundTripMs * 1.005);
}

/** Whether no place of the country can be the far end: light in fibre would have been too slow. */
export function excludes(disk: Disk, country: CountryFacts): boolean {
  return leastDistanceKm(country, disk.centre) > reachKm(disk);
}

/**
 * Round trips of home connections above light in fibre, in milliseconds, by distance in kilometres: median, and 95th
 * percentile (19,400 pairs of RIPE Atlas home probes and landmark cities, June-July 2023, RIPE NCC).
 */
export const homeExcess = {
  median: [
    [50, 3.3],
    [500, 12.7],
    [1100, 19],
    [2250, 26.4],
    [4500, 38],
    [7500, 46],
    [11000, 109],
  ],
  p95: [
    [50, 18.8],
    [500, 30.8],
    [1100, 38.5],
    [2250, 49.7],
    [4500, 94],
    [7500, 156],
    [11000, 241],
  ],
} as const;

/** Milliseconds added to both sides of the comparison, so that near landmarks' small numbers do not rule. */
const floorMs = 20;

/** Standard normal quantile of the 95th percentile. */
const z95 = 1.645;

/** How far a round trip is above what homes at that distance have, in standard deviations of its logarithm. */
function excessScore(excessMs: number, km: number): number {
  const median = interpolate(homeExcess.median, km);
  const deviation = Math.log(interpolate(homeExcess.p95, km) / median) / z95;
  return (Math.log(Math.max(0, excessMs) + floorMs) - Math.log(median + floorMs)) / deviation;
}

/**
 * How badly round trips fit the country: at the likely place in it that they fit best, the mean of the two least scores, so that
 * no single slow path counts. Undefined where there is none, or none of its places is possible.
 */
export function distanceScore(disks: readonly Disk[], country: CountryFacts): number | undefined {
  if (disks.length === 0) return undefined;
  let best: number | undefined;
  for (const place of country.likelyPoints) {
    const ways = disks.map(({ centre, rttMs }) => {
      const km = distanceKm(place, centre);
      return { km, excessMs: rttMs - km / kmPerRoundTripMs };
    });
    // The place stands for its surroundings: only what is out of their reach too is out of the question.
    if (ways.some(({ excessMs }) => excessMs < -country.radiusKm / kmPerRoundTripMs)) continue;
    const scores = ways.map(({ excessMs, km }) => excessScore(excessMs, km)).sort((a, b) => a - b);
    const [first = 0, second = first] = scores;
    const score = (first + second) / 2;
    if (best === undefined || score < best) best = score;
  }
  return best;
}

/** A round trip over a geostationary satellite takes longer than this, in milliseconds (4 times 35,786 km by light). */
const geostationaryMs = 477;

/**
 * Bits of a tunnel by score, for one landmark, two or three, and more: at the scores that 10, 5, 2, 1 and 0.5 % of homes
 * exceed, by the share of tunnels that do. One landmark's scores end at 2 %, where a slow path looks like any tunnel. See
 * README.md, "Distance".
 */
const scoreTables = {
  one: [
    [0.81, 0],
    [1.02, 3.9],
    [1.31, 5],
  ],
  few: [
    [0.53, 0],
    [0.72, 3.9],
    [1.1, 5],
    [1.26, 5.8],
    [1.72, 6.4],
  ],
  many: [
    [0.28, 0],
    [0.49, 3.9],
    [0.9, 4.9],
    [1.23, 5.6],
    [1.32, 6.5],
  ],
} as const;

/**
 * Bits of round trips that are longer than the country explains, for a tunnel. Rises with the round trips, save where all
 * of them are as long as a geostationary satellite's, which few tunnels and all its subscribers have: then little is left.
 */
export function distanceBits(disks: readonly Disk[], country: CountryFacts): number {
  const score = distanceScore(disks, country);
  if (score === undefined) return 0;
  const table = disks.length >= 4 ? scoreTables.many : disks.length >= 2 ? scoreTables.few : scoreTables.one;
  const bits = interpolate(table, score);
  return disks.every(({ rttMs }) => rttMs >= geostationaryMs) ? Math.min(bits, 3) : bits;
}

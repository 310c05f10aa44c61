import { type Disk, reachKm } from "./distance-evidence.ts";
import { circle, destination, distanceKm, maxDistanceKm, type Point } from "./great-circle.ts";

/** Vertices of a region: bearings from its inner point. */
const vertices = 64;

/**
 * Where a session can be: the part of the globe that all round trips reach, as a ring of 64 vertices in order, not closed
 * (constraint-based geolocation, Gueye et al. 2006, at 2/3 c). Empty where nothing is excluded. Disks wider than a
 * hemisphere are left out and, should the rest have no common point that is found, all but the smallest: the region can be
 * too large, never too small.
 */
export function feasibleRegion(disks: readonly Disk[]): Point[] {
  const caps = disks
    .map((disk) => ({ centre: disk.centre, radiusKm: reachKm(disk) }))
    .filter(({ radiusKm }) => radiusKm < maxDistanceKm / 2)
    .sort((a, b) => a.radiusKm - b.radiusKm);
  const [smallest] = caps;
  if (smallest === undefined) return [];
  const inner = commonPoint(caps);
  if (inner === undefined) return circle(smallest.centre, smallest.radiusKm, vertices);
  // Caps are convex, and so is what they share: along each bearing it is left once.
  return Array.from({ length: vertices }, (_, index) => {
    const bearing = (2 * Math.PI * index) / vertices;
    let inside = 0;
    let outside = 2 * smallest.radiusKm;
    for (let step = 0; step < 24; step += 1) {
      const middle = (inside + outside) / 2;
      if (isIn(destination(inner, bearing, middle), caps)) inside = middle;
      else outside = middle;
    }
    return destination(inner, bearing, inside);
  });
}

interface Cap {
  readonly centre: Point;
  readonly radiusKm: number;
}

function isIn(point: Point, caps: readonly Cap[]): boolean {
  return caps.every(({ centre, radiusKm }) => distanceKm(point, centre) <= radiusKm);
}

/** A point in all caps, by projecting onto the cap that is missed the most, in turns; undefined where none is found. */
function commonPoint(caps: readonly Cap[]): Point | undefined {
  let point = caps[0]?.centre;
  for (let turn = 0; turn < 100 && point !== undefined; turn += 1) {
    let worst: Cap | undefined;
    let missKm = 0;
    for (const cap of caps) {
      const km = distanceKm(point, cap.centre) - cap.radiusKm;
      if (km > missKm) [worst, missKm] = [cap, km];
    }
    if (worst === undefined) return point;
    // A little further than the rim, so that touching caps are found too.
    point = towards(point, worst.centre, missKm + 1);
  }
  return undefined;
}

function towards(from: Point, to: Point, km: number): Point {
  const radians = Math.PI / 180;
  const [a, b] = [from.latitude * radians, to.latitude * radians];
  const east = (to.longitude - from.longitude) * radians;
  const bearing = Math.atan2(
    Math.sin(east) * Math.cos(b),
    Math.cos(a) * Math.sin(b) - Math.sin(a) * Math.cos(b) * Math.cos(east),
  );
  return destination(from, bearing, km);
}

/** A position in degrees, north and east. */
export interface Point {
  readonly latitude: number;
  readonly longitude: number;
}

/** Kilometres that light in fibre (2/3 c) covers there and back in a millisecond of round trip. */
export const kmPerRoundTripMs = 99.931;

/** Half the Earth's circumference, in kilometres: no two places are further apart. */
export const maxDistanceKm = 20038;

const earthRadiusKm = 6371.009;
const radians = Math.PI / 180;

/** Great-circle distance in kilometres (haversine; within 0.5 % of the ellipsoid's). */
export function distanceKm(a: Point, b: Point): number {
  const latitude = Math.sin(((b.latitude - a.latitude) * radians) / 2) ** 2;
  const longitude = Math.sin(((b.longitude - a.longitude) * radians) / 2) ** 2;
  const h = latitude + Math.cos(a.latitude * radians) * Math.cos(b.latitude * radians) * longitude;
  return 2 * earthRadiusKm * Math.asin(Math.sqrt(Math.min(1, Math.max(0, h))));
}

/** The place that lies so far from another along a bearing, in radians east of north. Always finite for finite input. */
export function destination(from: Point, bearing: number, km: number): Point {
  const angle = Math.min(km, maxDistanceKm) / earthRadiusKm;
  const latitude = from.latitude * radians;
  const sine = Math.sin(latitude) * Math.cos(angle) + Math.cos(latitude) * Math.sin(angle) * Math.cos(bearing);
  const north = Math.asin(Math.min(1, Math.max(-1, sine)));
  const east = Math.atan2(
    Math.sin(bearing) * Math.sin(angle) * Math.cos(latitude),
    Math.cos(angle) - Math.sin(latitude) * Math.sin(north),
  );
  const longitude = (((from.longitude + east / radians + 540) % 360) + 360) % 360;
  return { latitude: north / radians, longitude: longitude - 180 };
}

/** Vertices of a circle on the sphere, in order and not closed. */
export function circle(centre: Point, radiusKm: number, vertices = 32): Point[] {
  return Array.from({ length: vertices }, (_, index) =>
    destination(centre, (2 * Math.PI * index) / vertices, radiusKm),
  );
}

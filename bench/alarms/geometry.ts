import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type CountryFacts, countryFacts } from "../../services/verdict/inference/country-facts.ts";
import { homeExcess } from "../../services/verdict/inference/distance-evidence.ts";
import { distanceKm, kmPerRoundTripMs, type Point } from "../../services/verdict/inference/great-circle.ts";
import { interpolate } from "../../services/verdict/inference/hypotheses.ts";
import { normal, pick, type Random } from "./random.ts";

/** A round trip from a landmark, in milliseconds. */
export interface Way {
  readonly from: Point;
  readonly rttMs: number;
}

/** A home: where it is, and its round trips. */
export interface Home {
  readonly at: Point;
  readonly country: string;
  /** The country that a database says that is wrong as often as free ones are; see the data's own description. */
  readonly databaseCountry: string;
  readonly ways: readonly Way[];
}

/** A server that can be an exit or stand for a client. */
export interface Server {
  readonly at: Point;
  readonly country: string;
}

/** Homes and servers, and the round trips between servers. */
export interface Geometry {
  /** `measured`, or `summary` of what was measured. */
  readonly source: string;
  readonly homes: readonly Home[];
  readonly servers: readonly Server[];
  /** Round trip between two servers, in milliseconds; undefined where it was not measured. */
  between(a: Server, b: Server): number | undefined;
}

/** Landmark cities of the measured homes. */
const cities: readonly Point[] = [
  { latitude: 40.4, longitude: -3.7 },
  { latitude: 48.9, longitude: 2.4 },
  { latitude: 41.4, longitude: 2.2 },
  { latitude: 33.7, longitude: -84.4 },
  { latitude: 53.3, longitude: -6.3 },
  { latitude: 36.7, longitude: -78.4 },
  { latitude: 1.4, longitude: 103.8 },
  { latitude: 50.1, longitude: 8.7 },
  { latitude: 55.8, longitude: 37.6 },
];

/**
 * Reads measured sets from a folder: `clients-*.landmarks.json` with `clients-*.jsonl`, and `server-mesh.*.csv`, in the
 * form `{"id","kind","lat","lon","country","ip_country","rtt_ms":{"<landmark>": ms}}`. Rejects where one is missing.
 */
export async function readGeometry(folder: string): Promise<Geometry> {
  const homes: Home[] = [];
  for (const set of ["clients-9", "clients-few"]) {
    const landmarks = new Map<string, Point>();
    for (const { id, lat, lon } of JSON.parse(
      await readFile(join(folder, `${set}.landmarks.json`), "utf8"),
    ) as Place[]) {
      landmarks.set(id, { latitude: lat, longitude: lon });
    }
    for (const line of (await readFile(join(folder, `${set}.dev.jsonl`), "utf8")).split("\n").filter(Boolean)) {
      const row = JSON.parse(line) as Row;
      const ways = Object.entries(row.rtt_ms).flatMap(([id, rttMs]) => {
        const from = landmarks.get(id);
        return from === undefined ? [] : [{ from, rttMs }];
      });
      const at = { latitude: row.lat, longitude: row.lon };
      homes.push({ at, country: row.country, databaseCountry: row.ip_country, ways });
    }
  }
  const servers = new Map<string, Server>();
  const trips = new Map<string, number>();
  const [, ...rows] = (await readFile(join(folder, "server-mesh.dev.csv"), "utf8")).trim().split("\n");
  for (const row of rows) {
    const [aLat, aLon, aCountry = "", bLat, bLon, bCountry = "", rttMs] = row.split(",");
    const a = { at: { latitude: Number(aLat), longitude: Number(aLon) }, country: aCountry };
    const b = { at: { latitude: Number(bLat), longitude: Number(bLon) }, country: bCountry };
    for (const server of [a, b]) if (!servers.has(keyOf(server))) servers.set(keyOf(server), server);
    trips.set(pairOf(a, b), Number(rttMs));
  }
  return {
    source: "measured",
    homes,
    servers: [...servers.values()],
    between: (a, b) => trips.get(pairOf(a, b)),
  };
}

interface Place {
  readonly id: string;
  readonly lat: number;
  readonly lon: number;
}

interface Row {
  readonly lat: number;
  readonly lon: number;
  readonly country: string;
  readonly ip_country: string;
  readonly rtt_ms: Readonly<Record<string, number>>;
}

/** The same as `homeExcess`, between servers (WonderProxy, "A day in the life of the Internet", 19-20 July 2020). */
const serverExcess = {
  median: [
    [50, 2.8],
    [200, 5.6],
    [500, 12.6],
    [1100, 22.7],
    [2250, 36.2],
    [4500, 70.7],
    [7500, 96.8],
    [11000, 101.4],
  ],
  p95: [
    [50, 7.1],
    [200, 34.6],
    [500, 60.9],
    [1100, 75.7],
    [2250, 107.9],
    [4500, 209.4],
    [7500, 224],
    [11000, 224],
  ],
} as const;

/** Correlation of the excesses of one home's round trips, in logarithms. */
const shared = 0.35;

/** How many of the measured homes with four landmarks or more are in a country, where more than five are (RIPE Atlas). */
// biome-ignore format: a table
const homesIn: Readonly<Record<string, number>> = {
  US: 128, DE: 106, GB: 76, FR: 41, NL: 37, SE: 30, PT: 22, FI: 21, UA: 20, CA: 17, AU: 17, AT: 13, ES: 13, DK: 12, PL: 11,
  PH: 11, RU: 10, IE: 10, IR: 10, ID: 9, PA: 9, LV: 8, IT: 8, TR: 8, NZ: 7, GR: 7, RO: 7, VE: 7, CY: 7, NO: 6, LT: 6,
};

/** The same of the measured servers (WonderProxy). */
// biome-ignore format: a table
const serversIn: Readonly<Record<string, number>> = {
  CA: 9, NL: 8, CH: 6, IN: 6, FR: 4, TR: 4, BR: 3, US: 3, ES: 3, PL: 2, MX: 2, ZA: 2, NO: 2, CO: 2, GR: 2, LT: 2, JP: 1,
  SE: 1, GB: 1, DE: 1, SG: 1, UA: 1, FI: 1, HU: 1, AR: 1, EG: 1, MA: 1, TH: 1, RO: 1, CN: 1, TW: 1, GT: 1, PA: 1, AU: 1,
  KR: 1, SA: 1, KE: 1, AE: 1, BD: 1, HR: 1, RS: 1, KZ: 1, PK: 1, AL: 1, KH: 1, NG: 1, MT: 1, LB: 1, SR: 1,
};

/**
 * Homes and servers drawn from the summaries above: likely places of the same countries in the same shares, nine landmark
 * cities, log-normal excesses. As the engine scores distance by the same table, this flatters it: only the measured sets
 * say what it is worth.
 */
export function drawGeometry(homeCount: number, random: Random): Geometry {
  const placesIn = (shares: Readonly<Record<string, number>>): Server[] =>
    Object.entries(shares).flatMap(([country, count]) => {
      const points = countryFacts(country)?.likelyPoints ?? [];
      return Array.from({ length: points.length === 0 ? 0 : count }, () => ({ at: pick(points, random), country }));
    });
  const homePlaces = placesIn(homesIn);
  const excess = (table: typeof homeExcess | typeof serverExcess, km: number, z: number): number => {
    const median = interpolate(table.median, km);
    return median * Math.exp((z * Math.log(interpolate(table.p95, km) / median)) / 1.645);
  };
  const homes = Array.from({ length: homeCount }, () => {
    const { at, country } = pick(homePlaces, random);
    const own = normal(random);
    const ways = [...cities]
      .map((from) => ({ from, order: random() }))
      .sort((a, b) => a.order - b.order)
      .slice(0, 4 + Math.floor(2 * random()))
      .map(({ from }) => {
        const km = distanceKm(at, from);
        const z = Math.sqrt(shared) * own + Math.sqrt(1 - shared) * normal(random);
        return { from, rttMs: km / kmPerRoundTripMs + excess(homeExcess, km, z) };
      });
    return { at, country, databaseCountry: country, ways };
  });
  const servers = [...cities.map((at) => ({ at, country: nearestCountry(at) })), ...placesIn(serversIn)];
  const trips = new Map<string, number>();
  const between = (a: Server, b: Server): number => {
    const known = trips.get(pairOf(a, b));
    if (known !== undefined) return known;
    const km = distanceKm(a.at, b.at);
    const rttMs = km / kmPerRoundTripMs + excess(serverExcess, km, normal(random));
    trips.set(pairOf(a, b), rttMs);
    return rttMs;
  };
  return { source: "summary", homes, servers, between };
}

/** Codes of all countries that the engine has facts of. */
function countryCodes(): string[] {
  const letters = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
  return letters.flatMap((a) => letters.map((b) => a + b)).filter((code) => countryFacts(code) !== undefined);
}

function nearestCountry(at: Point): string {
  const kmTo = ({ points }: CountryFacts): number => Math.min(...points.map((point) => distanceKm(at, point)));
  const known = countryCodes().flatMap((code) => {
    const facts = countryFacts(code);
    return facts === undefined ? [] : [{ code, km: kmTo(facts) }];
  });
  return known.sort((a, b) => a.km - b.km)[0]?.code ?? "";
}

function keyOf({ at }: Server): string {
  return `${at.latitude},${at.longitude}`;
}

function pairOf(a: Server, b: Server): string {
  return [keyOf(a), keyOf(b)].sort().join(" ");
}

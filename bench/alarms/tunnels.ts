import { countryFacts } from "../../services/verdict/inference/country-facts.ts";
import { distanceKm, type Point } from "../../services/verdict/inference/great-circle.ts";
import type { Geometry, Home, Server, Way } from "./geometry.ts";
import { normal, pick, type Random } from "./random.ts";

/** How far the exit of a tunnel is from its client. */
export type TunnelDistance = "same_country" | "same_continent" | "intercontinental";

/** A session through a tunnel, as the landmarks see it. */
export interface Tunnel {
  readonly distance: TunnelDistance;
  readonly exit: Server;
  readonly legMs: number;
  readonly ways: readonly Way[];
}

/**
 * What a home's access line adds to a round trip, in milliseconds: home probes within 100 km of a landmark, above light in
 * fibre (RIPE Atlas, June-July 2023, RIPE NCC).
 */
const access = { median: 3.3, p95: 18.8 } as const;

/** Furthest that a server may be from a landmark city to stand for it, in kilometres. */
const standInKm = 500;
/** Landmarks nearer to the exit than this are left out, in kilometres. */
const sameCityKm = 40;

/**
 * Draws a tunnel: exit and client are servers, and the client's leg is the measured round trip between them and an access
 * line such as homes have. The landmarks are those servers that stand nearest to the landmark cities of a home, so that
 * there are about as many as the home has. What the tunnel's own software adds is left out. Undefined where fewer than two
 * landmarks are left.
 */
export function drawTunnel(
  geometry: Geometry,
  home: Home,
  exits: readonly Server[],
  distance: TunnelDistance,
  random: Random,
): Tunnel | undefined {
  const exit = pick(exits, random);
  const clients = geometry.servers.filter((server) => server !== exit && distanceOf(server, exit) === distance);
  if (clients.length === 0) return undefined;
  const path = geometry.between(pick(clients, random), exit);
  if (path === undefined) return undefined;
  const legMs = path + access.median * Math.exp((normal(random) * Math.log(access.p95 / access.median)) / 1.645);
  const ways = home.ways.flatMap(({ from }) => {
    const server = standInOf(geometry, from);
    const rttMs = server === undefined ? undefined : geometry.between(server, exit);
    if (server === undefined || rttMs === undefined || distanceKm(server.at, exit.at) < sameCityKm) return [];
    return [{ from: server.at, rttMs: rttMs + legMs }];
  });
  return ways.length < 2 ? undefined : { distance, exit, legMs, ways };
}

const standIns = new WeakMap<Point, Server | "none">();

/** The server that stands for a landmark city. */
function standInOf({ servers }: Geometry, city: Point): Server | undefined {
  let found = standIns.get(city);
  if (found === undefined) {
    const [nearest] = servers
      .map((server) => ({ server, km: distanceKm(server.at, city) }))
      .sort((a, b) => a.km - b.km);
    found = nearest === undefined || nearest.km > standInKm ? "none" : nearest.server;
    standIns.set(city, found);
  }
  return found === "none" ? undefined : found;
}

function distanceOf(a: Server, b: Server): TunnelDistance {
  if (a.country === b.country) return "same_country";
  return continentOf(a.country) === continentOf(b.country) ? "same_continent" : "intercontinental";
}

/** The part of the world that a country's first time zone is named after; America in two, at 13 degrees north. */
function continentOf(country: string): string {
  const facts = countryFacts(country);
  const part = facts?.timeZones[0]?.split("/")[0] ?? "";
  return part === "America" && (facts?.point.latitude ?? 0) < 13 ? "South America" : part;
}

import { countryFacts } from "../../services/verdict/inference/country-facts.ts";
import { distanceScore } from "../../services/verdict/inference/distance-evidence.ts";
import type { Geometry, Way } from "./geometry.ts";
import { isCalibration, type Random } from "./random.ts";
import { drawTunnel, type TunnelDistance } from "./tunnels.ts";

/** A score, the share of homes that exceed it, and the share of tunnels, equally many of each distance. */
export interface Quantile {
  readonly homes: number;
  readonly score: number;
  readonly tunnels: number;
  readonly bits: number;
}

/**
 * The distance scores from which the engine's tables are taken: of the calibration half of the homes, and of tunnels that
 * end in the calibration half of the servers, by number of landmarks.
 */
export function calibrate(geometry: Geometry, random: Random): Record<string, Quantile[]> {
  const homes = geometry.homes.filter(({ at }) => isCalibration(at));
  const exits = geometry.servers.filter(({ at }) => isCalibration(at));
  const groups = { one: [1, 1], few: [2, 3], many: [4, 99] } as const;
  const tables: Record<string, Quantile[]> = {};
  for (const [name, [least, most]] of Object.entries(groups)) {
    const isOf = (ways: readonly Way[]): boolean => ways.length >= least && ways.length <= most;
    const group = homes.filter(({ ways }) => isOf(ways));
    // Sessions whose round trips are all a satellite's are weighed apart by the engine.
    const scores = group
      .filter(({ ways }) => ways.some(({ rttMs }) => rttMs < 477))
      .flatMap(({ country, ways }) => scoreOf(country, ways))
      .sort((a, b) => a - b);
    const tunnels = Object.fromEntries(
      (["same_country", "same_continent", "intercontinental"] as const).map((distance) => {
        const drawn: number[] = [];
        for (let attempt = 0; attempt < 4000 && drawn.length < 600 && group.length > 0; attempt += 1) {
          const home = homes[Math.floor(random() * homes.length)];
          if (home === undefined) break;
          const tunnel = drawTunnel(geometry, home, exits, distance, random);
          const ways = least === 1 ? tunnel?.ways.slice(0, 1) : tunnel?.ways;
          if (tunnel !== undefined && ways !== undefined && isOf(ways))
            drawn.push(...scoreOf(tunnel.exit.country, ways));
        }
        return [distance, drawn];
      }),
    ) as Record<TunnelDistance, number[]>;
    tables[name] = [0.1, 0.05, 0.02, 0.01, 0.005].map((share) => {
      const score = scores[Math.floor((1 - share) * scores.length)] ?? Number.NaN;
      const exceed = Object.values(tunnels).map((all) => all.filter((one) => one > score).length / all.length);
      const seen = exceed.reduce((sum, each) => sum + each, 0) / exceed.length;
      return { homes: share, score, tunnels: seen, bits: Math.log2(seen / share) };
    });
  }
  return tables;
}

function scoreOf(country: string, ways: readonly Way[]): number[] {
  const facts = countryFacts(country);
  if (facts === undefined) return [];
  const score = distanceScore(
    ways.map(({ from, rttMs }) => ({ centre: from, rttMs })),
    facts,
  );
  return score === undefined ? [] : [score];
}

/**
 * How often the verdict's alarm is right: false alarms of direct sessions, and alarms of hidden ones.
 *
 *   npm run bench -- alarms [--json] [--data FOLDER] [--lab FILE] [--sessions N] [--seed N] [--calibrate]
 *
 * Every session is a SignalBundle with measurements of landmarks that goes through the engine as it is, and an alarm
 * counts from `medium` on. The same seed gives the same figures.
 *
 * Direct sessions are homes: with `--data` (or OCTOMESH_GEO_DATA) a folder of measured round trips (alarms/geometry.ts),
 * of which the half is scored that no threshold was taken from; without it drawn from summaries, which flatters the
 * distance evidence. What lies between kernel and browser is drawn from summaries in either case (alarms/noise.ts).
 * Proxies are the same homes with a leg more. Tunnels are made of measured round trips between servers; they look like
 * their exit in time zone, language, network and segment size, so that timing alone gives them away (alarms/tunnels.ts).
 * `--lab` names sessions of a real browser in the laboratory, as test/lab/hiding-table.ts captures them (by default those in
 * alarms/lab-sessions.jsonl; empty for none): JSON lines of `{"label", "legMs", "bundle"}` with a label of direct, connect,
 * socks, nat, openvpn or wireguard and the bundle in base64. Direct ones and proxies count with the
 * others, tunnels are told apart, since the laboratory's addresses are of no country.
 *
 * Exits with 1 where a target is missed.
 */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { fromBinary } from "@bufbuild/protobuf";
import { SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import { Verdict_Alarm as Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import { readCollectorReport } from "../services/verdict/collector-report.ts";
import { createInference, modelVersion, type SessionSignals } from "../services/verdict/inference/infer.ts";
import { openIpCountry } from "../services/verdict/inference/ip-country.ts";
import { findNetworkTable, openNetworkClasses } from "../services/verdict/inference/network-classes.ts";
import { calibrate } from "./alarms/calibrate.ts";
import { drawGeometry, type Home, readGeometry } from "./alarms/geometry.ts";
import { createRandom, isCalibration, pick } from "./alarms/random.ts";
import { drawSession, findAddresses } from "./alarms/sessions.ts";
import { drawTunnel, type TunnelDistance } from "./alarms/tunnels.ts";
import { wilson } from "./alarms/wilson.ts";

const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    calibrate: { type: "boolean", default: false },
    data: { type: "string", default: process.env.OCTOMESH_GEO_DATA ?? "" },
    lab: { type: "string", default: fileURLToPath(new URL("alarms/lab-sessions.jsonl", import.meta.url)) },
    sessions: { type: "string", default: "2000" },
    seed: { type: "string", default: "1" },
  },
});
const sessions = Number(values.sessions);
const random = createRandom(Number(values.seed));

const { hostingNetworks } = (await import(new URL("../tools/hosting-networks.mjs", import.meta.url).href)) as {
  hostingNetworks(): boolean;
};
hostingNetworks();
const table = findNetworkTable();
if (table === undefined) throw new Error("there is no table of networks");
const ipCountry = await openIpCountry();
const networks = await openNetworkClasses(table);
const engine = createInference(ipCountry, networks);
const addresses = findAddresses(ipCountry, networks);
const geometry = values.data === "" ? drawGeometry(4000, random) : await readGeometry(values.data);

/** Sessions of one kind, and how many of them raised an alarm. */
interface Tally {
  n: number;
  medium: number;
  high: number;
}
const tallies = new Map<string, Tally>();

if (values.calibrate) {
  process.stdout.write(`${JSON.stringify(calibrate(geometry, random), null, 2)}\n`);
} else {
  const homes = geometry.homes.filter(({ at, country }) => !isCalibration(at) && addresses.has(country));
  scoreHomes(homes);
  scoreProxies(homes);
  const exits = geometry.servers.filter(({ at, country }) => !isCalibration(at) && addresses.has(country));
  scoreTunnels(
    "",
    homes.filter(({ ways }) => ways.length >= 4),
    exits,
    1460,
  );
  scoreTunnels(
    "_few_landmarks",
    homes.filter(({ ways }) => ways.length < 4),
    exits,
    1460,
  );
  scoreTunnels(
    "_wireguard_segments",
    homes.filter(({ ways }) => ways.length >= 4),
    exits,
    1380,
  );
  if (values.lab !== "") await scoreLab(values.lab);
  print();
}

function score(kind: string, signals: SessionSignals): void {
  const tally = tallies.get(kind) ?? { n: 0, medium: 0, high: 0 };
  tallies.set(kind, tally);
  const { alarm } = engine.infer(signals);
  tally.n += 1;
  if (alarm >= Alarm.MEDIUM) tally.medium += 1;
  if (alarm >= Alarm.HIGH) tally.high += 1;
}

/** Each home once, so that the interval is one of independent homes. */
function scoreHomes(homes: readonly Home[]): void {
  for (const { country, databaseCountry, ways } of homes) {
    const address = addresses.get(country) ?? "";
    score("direct", drawSession({ address, country, ways, random }));
    if (ways.length >= 4) score("direct_many_landmarks", drawSession({ address, country, ways, random }));
    score("direct_held", drawSession({ address, country, ways, random, holding: "session" }));
    // Summaries hold no errors of a database.
    const given = geometry.source === "measured" ? addresses.get(databaseCountry) : undefined;
    if (given !== undefined) score("direct_database_errors", drawSession({ address: given, country, ways, random }));
  }
}

function scoreProxies(homes: readonly Home[]): void {
  for (const legMs of [5, 15, 60]) {
    for (let count = 0; count < sessions; count += 1) {
      const { country, ways } = pick(homes, random);
      const address = addresses.get(country) ?? "";
      score(`tcp_proxy_${legMs}ms`, drawSession({ address, country, ways, legMs, random }));
    }
  }
}

function scoreTunnels(suffix: string, homes: readonly Home[], exits: typeof geometry.servers, mss: number): void {
  if (homes.length === 0) return;
  for (const distance of ["intercontinental", "same_continent", "same_country"] satisfies TunnelDistance[]) {
    for (let count = 0, attempts = 0; count < sessions && attempts < 50 * sessions; attempts += 1) {
      const tunnel = drawTunnel(geometry, pick(homes, random), exits, distance, random);
      if (tunnel === undefined) continue;
      const { country } = tunnel.exit;
      const address = addresses.get(country) ?? "";
      score(`vpn_${distance}${suffix}`, drawSession({ address, country, ways: tunnel.ways, mss, random }));
      count += 1;
    }
  }
}

async function scoreLab(file: string): Promise<void> {
  for (const [index, line] of (await readFile(file, "utf8")).split("\n").entries()) {
    if (line.trim() === "") continue;
    const { label, legMs, bundle } = JSON.parse(line) as { label?: unknown; legMs?: unknown; bundle?: unknown };
    if (typeof label !== "string" || typeof legMs !== "number" || typeof bundle !== "string") {
      throw new Error(`${file}:${index + 1}: not a label, a leg and a bundle`);
    }
    const signed = fromBinary(SignalBundleSchema, Buffer.from(bundle, "base64"));
    const report = readCollectorReport(signed.collectorReport);
    const signals: SessionSignals = { bundle: signed, report, measurements: [] };
    score(`lab_${label}_${legMs}ms`, signals);
    if (label === "direct") score("direct", signals);
    if (label === "connect" || label === "socks") score(`tcp_proxy_${legMs}ms`, signals);
  }
}

function print(): void {
  const rate = (kind: string): number | null => {
    const { n, medium } = tallies.get(kind) ?? { n: 0, medium: 0 };
    return n === 0 ? null : round(medium / n);
  };
  const direct = tallies.get("direct") ?? { n: 0, medium: 0, high: 0 };
  const report = {
    model: modelVersion,
    noise: geometry.source,
    false_medium_rate: rate("direct"),
    false_ci_high: round(wilson(direct.medium, direct.n).high),
    tcp_proxy_5ms: rate("tcp_proxy_5ms"),
    tcp_proxy_15ms: rate("tcp_proxy_15ms"),
    vpn_intercontinental: rate("vpn_intercontinental"),
    vpn_same_continent: rate("vpn_same_continent"),
    vpn_same_country: rate("vpn_same_country"),
    n: [...tallies.values()].reduce((sum, { n }) => sum + n, 0),
    n_direct: direct.n,
    kinds: Object.fromEntries(
      [...tallies].map(([kind, { n, medium, high }]) => [
        kind,
        { n, medium: round(medium / n), high: round(high / n) },
      ]),
    ),
  };
  const targets = [
    ["false_medium_rate", "at most", 0.01],
    ["tcp_proxy_5ms", "at least", 0.95],
    ["vpn_intercontinental", "at least", 0.85],
    ["vpn_same_continent", "at least", 0.35],
  ] as const;
  const missed = targets.filter(([name, bound, target]) => {
    const value = report[name];
    return value === null || (bound === "at most" ? value > target : value < target);
  });
  if (values.json) process.stdout.write(`${JSON.stringify(report)}\n`);
  else {
    process.stdout.write(`model ${report.model}, noise ${report.noise}\n\n`);
    process.stdout.write(
      `${"kind".padEnd(42)}${"n".padStart(7)}${"medium+".padStart(10)}${"high".padStart(9)}   95 %\n`,
    );
    for (const [kind, { n, medium, high }] of tallies) {
      const { low, high: most } = wilson(medium, n);
      const cells = [percent(medium / n).padStart(10), percent(high / n).padStart(9)].join("");
      process.stdout.write(
        `${kind.padEnd(42)}${String(n).padStart(7)}${cells}   ${percent(low)} to ${percent(most)}\n`,
      );
    }
    process.stdout.write("\n");
    for (const [name, bound, target] of targets) {
      const verdict = missed.some(([other]) => other === name) ? "MISSED" : "reached";
      process.stdout.write(`${verdict.padEnd(8)} ${name} ${report[name]}, target ${bound} ${target}\n`);
    }
  }
  if (missed.length > 0) process.exitCode = 1;
}

function round(value: number): number {
  return Math.round(value * 10_000) / 10_000;
}

function percent(share: number): string {
  return `${(100 * share).toFixed(2)} %`;
}

import { ConnectionTiming_Degradation, type LatencyChannel } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import type { LandmarkMeasurement } from "@octomesh/proto/octomesh/edge/v1/landmark_measurement_pb";
import type { SignalBundle } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import {
  VerdictEvidence_EvidenceClass as Evidence,
  VerdictEvidence_TimingQuality as Quality,
} from "@octomesh/proto/octomesh/verdict/v1/verdict_evidence_pb";
import { Verdict_Alarm as Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import type { Logger } from "pino";
import type { CollectorReport } from "../collector-report.ts";
import { type CountryFacts, countryFacts } from "./country-facts.ts";
import { type Disk, distanceBits, excludes, reachKm } from "./distance-evidence.ts";
import { feasibleRegion } from "./feasible-region.ts";
import { distanceKm, maxDistanceKm, type Point } from "./great-circle.ts";
import { alarmOf, type Bits, either, interpolate, type Posterior, posteriorOf, weightOf } from "./hypotheses.ts";
import { type IpCountry, openIpCountry } from "./ip-country.ts";
import { findNetworkTable, type NetworkClasses, openNetworkClasses } from "./network-classes.ts";
import {
  echoBits,
  type Gap,
  gapBits,
  gapOf,
  isHelloLate,
  isOtherSystem,
  isTimed,
  isWindows,
  segmentBits,
} from "./timing-evidence.ts";

/** What is known of a session; its measurements are verified, of this session and fresh. */
export interface SessionSignals {
  readonly bundle: SignalBundle;
  readonly report: CollectorReport;
  readonly measurements: readonly LandmarkMeasurement[];
}

/** One piece of evidence and its logarithmic likelihood ratio, base 2. */
export interface Finding {
  readonly evidenceClass: Evidence;
  readonly weightBits: number;
}

/** What the signals come to. */
export interface Inference {
  /** ISO 3166-1 alpha-2; empty where it is not known. */
  readonly country: string;
  readonly confidence: number;
  readonly alarm: Alarm;
  readonly location?: Point;
  readonly radiusKm: number;
  readonly region: Point[];
  /** The weightiest first. */
  readonly findings: Finding[];
  readonly timingQuality: Quality;
  readonly pings: number;
  readonly landmarks: number;
  readonly modelVersion: string;
}

/** Judges sessions: pure, synchronous, never throws on messages that the contract admits. */
export interface InferenceEngine {
  infer(signals: SessionSignals): Inference;
}

/** Version of the model; it changes with every weight. */
export const modelVersion = "disk-3";

/**
 * Bits of the evidence that is either there or not. README.md, "Weights", says what each is derived from, and which of
 * them are taken because nothing was measured.
 */
const weights = {
  lateHello: 2.9,
  lateHelloAlone: 1.5,
  otherSystem: 3.7,
  impossible: 10.5,
  hosting: 4.3,
  foreignZone: 2.5,
  foreignLanguage: 0.5,
  otherAddress: 1,
  /** At most so much of gap and hello is taken back where the carrier itself splits connections. */
  splittingCarrier: 6,
} as const;

/** Share of right answers of the IP database (92.8 % of 788 RIPE anchors). */
const priorOfIpCountry = 0.93;

/** The same where the time zone agrees, and where it names another country: shares of agreement 0.94 and 0.3. */
const countryWithZone = { home: 0.97, unknown: priorOfIpCountry, foreign: 0.53 } as const;

/** Share of proxies in the client's own country, by milliseconds of the client's leg, for equal shares of distances. */
const sameCountryProxy = [
  [5, 0.33],
  [15, 0.3],
  [25, 0.28],
  [50, 0.17],
] as const;
const sameCountryTunnel = 1 / 3;

/** Pings from which on timing counts as whole. */
const fullPings = 10;

/**
 * Opens the data files. Rejects where the IP database is missing. Without a table of networks (`networkTable`, by default
 * where `tools/hosting-networks.mjs` puts it), or with a broken one, addresses are not classed, and the log says so.
 */
export async function openInference(options: { log: Logger; networkTable?: string }): Promise<InferenceEngine> {
  const { log, networkTable = findNetworkTable() } = options;
  const ipCountry = await openIpCountry();
  let networks: NetworkClasses = () => undefined;
  const unclassed = "addresses are not classed as of hosting networks or carriers";
  if (networkTable === undefined) log.warn({ model: modelVersion, reason: "there is no table of networks" }, unclassed);
  else {
    try {
      networks = await openNetworkClasses(networkTable);
    } catch (error) {
      log.warn({ model: modelVersion, reason: "the table of networks cannot be read", err: error }, unclassed);
    }
  }
  return createInference(ipCountry, networks);
}

/** An engine over an IP database and classes of networks. */
export function createInference(ipCountry: IpCountry, networks: NetworkClasses = () => undefined): InferenceEngine {
  return { infer: (signals) => infer(signals, ipCountry, networks) };
}

function infer(signals: SessionSignals, ipCountry: IpCountry, networks: NetworkClasses): Inference {
  const { bundle, report, measurements } = signals;
  const code = ipCountry(bundle.sourceAddress);
  const facts = countryFacts(code);
  const network = networks(bundle.sourceAddress);
  const isCarrier = network === "splitting-carrier";
  const gap = gapOf(bundle.latencyChannel);
  const disks = disksOf(bundle, measurements);
  const exits = isCarrier ? [] : exitDisksOf(bundle, measurements);
  const isImpossible = facts !== undefined && [...disks, ...exits].some((disk) => excludes(disk, facts));

  const evidence = new Map<Evidence, Bits>([
    ...terminationEvidence(bundle, gap, isCarrier),
    ...tunnelEvidence(signals, isCarrier),
    ...contextEvidence(signals, facts),
  ]);
  if (network === "hosting") evidence.set(Evidence.HOSTING_NETWORK, either(weights.hosting));
  if (isImpossible) evidence.set(Evidence.IMPOSSIBLE_LOCATION, either(weights.impossible));
  else if (facts !== undefined) {
    // A proxy's leg lengthens round trips too, but that is what the gap weighs.
    evidence.set(Evidence.UNEXPLAINED_DISTANCE, { proxy: 0, tunnel: distanceBits(disks, facts) });
  }
  const posterior = posteriorOf([...evidence.values()]);
  const alarm = alarmOf(posterior);

  const findings = [...evidence]
    .map(([evidenceClass, bits]) => ({ evidenceClass, weightBits: weightOf(bits) }))
    .filter(({ weightBits }) => weightBits !== 0)
    .sort((a, b) => b.weightBits - a.weightBits || a.evidenceClass - b.evidenceClass);
  const confidence =
    facts === undefined || isImpossible ? 0 : confidenceOf(posterior, zoneOf(report.timeZone, facts), gap?.ms ?? 0);
  // The country of the address is the exit's. Where the session is hidden, it says nothing of where the browser is.
  const home = confidence === 0 || alarm >= Alarm.MEDIUM ? undefined : facts;
  return {
    country: confidence > 0 ? code : "",
    confidence,
    alarm,
    ...placeOf(disks, home),
    region: feasibleRegion(disks),
    findings,
    timingQuality: qualityOf(bundle),
    pings: bundle.latencyChannel?.roundTripUs.length ?? 0,
    landmarks: disks.length,
    modelVersion,
  };
}

/** What speaks for or against somebody who ends the TCP connection. */
function terminationEvidence(bundle: SignalBundle, gap: Gap | undefined, isCarrier: boolean): [Evidence, Bits][] {
  const found: [Evidence, Bits][] = [];
  const add = (evidence: Evidence, proxy: number): void => void found.push([evidence, { proxy, tunnel: 0 }]);
  const isSameWay = hasSameAddress(bundle);
  const bits = gap === undefined ? 0 : gapBits(gap);
  // Which way its channel goes is the browser's choice: another than the report's clears nothing of the report's.
  const crossLayer = isSameWay ? bits : Math.max(0, bits);
  add(Evidence.CROSS_LAYER_GAP, crossLayer);
  const connections = [bundle.connection, isSameWay ? bundle.latencyChannel?.connection : undefined].filter(isTimed);
  const isLate = connections.length > 0 && connections.every(isHelloLate);
  // A busy browser, a lost packet: without the gap beside it a late hello says little.
  const isBesideGap = gap !== undefined && (isSameWay || bits > 0);
  const hello = isLate ? (isBesideGap ? weights.lateHello : weights.lateHelloAlone) : 0;
  add(Evidence.HELLO_DELAY, hello);
  if (isCarrier) add(Evidence.SPLITTING_CARRIER, -Math.min(weights.splittingCarrier, Math.max(0, crossLayer + hello)));
  const [connection] = connections;
  // A tunnel carries the browser's own SYN: only who ends the connection sends another.
  if (connection !== undefined && isOtherSystem(connection, bundle.userAgent)) {
    add(Evidence.SYSTEM_MISMATCH, weights.otherSystem);
  }
  return found;
}

/** What speaks for a tunnel below TCP. */
function tunnelEvidence({ bundle, report }: SessionSignals, isCarrier: boolean): [Evidence, Bits][] {
  const { connection } = bundle;
  if (!isTimed(connection)) return [];
  // No phone sends the SYN of Windows, whatever a browser says of itself to be taken for one.
  const isMobile = !isWindows(connection) && (report.mobile === true || /Mobile|Android/.test(bundle.userAgent));
  // Carriers' gateways answer for their subscribers. The address that was asked is the channel's.
  const echo = isCarrier || !hasSameAddress(bundle) ? 0 : echoBits(connection, bundle.icmpRttUs, isMobile);
  return [
    [Evidence.TUNNEL_SEGMENT_SIZE, { proxy: 0, tunnel: segmentBits(connection) }],
    [Evidence.ECHO_GAP, { proxy: 0, tunnel: echo }],
  ];
}

/** Whether the latency channel, if there is one, came from the report's address. Edges that do not say so are believed. */
function hasSameAddress({ sourceAddress, latencyChannel }: SignalBundle): boolean {
  const address = latencyChannel?.sourceAddress ?? "";
  return address === "" || address === sourceAddress;
}

/** What does not tell one way of hiding from another. */
function contextEvidence({ bundle, report }: SessionSignals, facts: CountryFacts | undefined): [Evidence, Bits][] {
  const found: [Evidence, Bits][] = [];
  const channelAddress = bundle.latencyChannel?.sourceAddress ?? "";
  // Browsers with both IP versions may use one for each connection: only addresses of one version are compared.
  const isSameVersion = channelAddress.includes(":") === bundle.sourceAddress.includes(":");
  if (channelAddress !== "" && channelAddress !== bundle.sourceAddress && isSameVersion) {
    found.push([Evidence.ADDRESS_MISMATCH, either(weights.otherAddress)]);
  }
  if (facts !== undefined) {
    if (zoneOf(report.timeZone, facts) === "foreign") {
      found.push([Evidence.TIME_ZONE_MISMATCH, either(weights.foreignZone)]);
    }
    if (isForeignLanguage(report.languages, facts)) {
      found.push([Evidence.LANGUAGE_MISMATCH, either(weights.foreignLanguage)]);
    }
  }
  return found;
}

/** Probability that the browser is in the country of the address. */
function confidenceOf({ none, proxy, tunnel }: Posterior, zone: keyof typeof countryWithZone, gapMs: number): number {
  return countryWithZone[zone] * (none + proxy * interpolate(sameCountryProxy, gapMs) + tunnel * sameCountryTunnel);
}

function qualityOf({ connection, latencyChannel }: SignalBundle): Quality {
  if (!isTimed(connection) && !isTimed(latencyChannel?.connection)) return Quality.NONE;
  const pings = latencyChannel?.roundTripUs.length ?? 0;
  return pings >= fullPings && isTimed(latencyChannel?.connection) ? Quality.FULL : Quality.PARTIAL;
}

/** Those of which it is known where they are and what they measured. */
function sourcesOf<T>(sources: readonly { readonly position?: Point; readonly channel?: T }[]) {
  return sources.flatMap(({ position, channel }) => {
    if (position === undefined || channel === undefined) return [];
    const { latitude, longitude } = position;
    return Math.abs(latitude) <= 90 && Math.abs(longitude) <= 180 ? [{ centre: { latitude, longitude }, channel }] : [];
  });
}

/** The browser's own round trips, which bound where it is whatever stands between. */
function disksOf(bundle: SignalBundle, measurements: readonly LandmarkMeasurement[]): Disk[] {
  const edge = { position: bundle.edgePosition, channel: bundle.latencyChannel };
  return sourcesOf([edge, ...measurements]).flatMap(({ centre, channel }) => {
    const trips = channel.roundTripUs.map((us) => Number(us) / 1000).filter((ms) => ms > 0);
    // A proxy before the edge may answer pings itself.
    const isBehindProxy = channel.connection?.degradation === ConnectionTiming_Degradation.BEHIND_PROXY;
    return trips.length === 0 || isBehindProxy ? [] : [{ centre, rttMs: Math.min(...trips) }];
  });
}

/**
 * The kernel's round trips to the far end of connections from the address, which bound where that is. The report's own is
 * one of them: a browser that does without a channel cannot do without it.
 */
function exitDisksOf(bundle: SignalBundle, measurements: readonly LandmarkMeasurement[]): Disk[] {
  const { edgePosition: position, latencyChannel } = bundle;
  const connections: readonly { position?: Point; channel?: Pick<LatencyChannel, "connection" | "sourceAddress"> }[] = [
    { position, channel: bundle },
    { position, channel: latencyChannel },
    ...measurements,
  ];
  return sourcesOf(connections).flatMap(({ centre, channel: { connection, sourceAddress } }) =>
    sourceAddress === bundle.sourceAddress && isTimed(connection)
      ? [{ centre, rttMs: Number(connection.minRttUs) / 1000 }]
      : [],
  );
}

/** Whether a time zone is of a country. Names such as UTC and Etc/GMT+3 are of none: privacy settings report them. */
function zoneOf(zone: string, { timeZones }: CountryFacts): keyof typeof countryWithZone {
  if (timeZones.includes(zone)) return "home";
  return zone.includes("/") && !zone.startsWith("Etc/") && timeZones.length > 0 ? "foreign" : "unknown";
}

function isForeignLanguage(languages: readonly string[], { language }: CountryFacts): boolean {
  const spoken = languages.map((tag) => tag.toLowerCase().split("-")[0]);
  // English is set by many who speak something else.
  return spoken.length > 0 && !spoken.includes(language) && !spoken.includes("en");
}

/**
 * The country's first place that all round trips reach, and the radius around it that holds the country, or what the
 * smallest disk leaves of it. No place, and a radius of zero, where there is none.
 */
function placeOf(disks: readonly Disk[], country: CountryFacts | undefined): { location?: Point; radiusKm: number } {
  const location = country?.points.find((point) =>
    disks.every((disk) => distanceKm(point, disk.centre) <= reachKm(disk)),
  );
  if (country === undefined || location === undefined) return { radiusKm: 0 };
  const extents = [
    Math.max(...country.points.map((point) => distanceKm(point, location))) + country.radiusKm,
    ...disks.map((disk) => distanceKm(location, disk.centre) + reachKm(disk)),
  ];
  return { location, radiusKm: Math.min(maxDistanceKm, ...extents) };
}

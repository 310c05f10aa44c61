import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { LandmarkMeasurementSchema } from "@octomesh/proto/octomesh/edge/v1/landmark_measurement_pb";
import { SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import type { CollectorReport } from "../../services/verdict/collector-report.ts";
import { countryFacts } from "../../services/verdict/inference/country-facts.ts";
import type { SessionSignals } from "../../services/verdict/inference/infer.ts";
import type { IpCountry } from "../../services/verdict/inference/ip-country.ts";
import type { NetworkClasses } from "../../services/verdict/inference/network-classes.ts";
import type { Way } from "./geometry.ts";
import { type Holding, sampleChannel } from "./noise.ts";
import type { Random } from "./random.ts";

const userAgent =
  "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36";

/** A report of a browser whose time zone and language agree with a country. */
function reportOf(country: string): CollectorReport {
  const facts = countryFacts(country);
  return {
    version: 1,
    sessionRef: "bench",
    nonce: "",
    mode: "full",
    languages: facts === undefined ? [] : [`${facts.language}-${country}`],
    timeZone: facts?.timeZones[0] ?? "",
    utcOffsetMinutes: undefined,
    platform: "Linux x86_64",
    mobile: false,
    clockStepMs: 0.1,
    roundTrips: [],
    measurements: [],
    end: "done",
  };
}

/**
 * Draws what the engine is given of a session: the first way is the edge's, the others are landmarks'.
 *
 * @param legMs round trip between the browser and whoever ends its TCP connection, on top of the ways; 0 without
 * @param mss segment size that the SYN announces
 */
export function drawSession(options: {
  address: string;
  country: string;
  ways: readonly Way[];
  legMs?: number;
  mss?: number;
  holding?: Holding;
  random: Random;
}): SessionSignals {
  const { address, country, ways, legMs = 0, mss = 1460, holding, random } = options;
  const channels = ways.map(({ from, rttMs }) => {
    const sample = sampleChannel(rttMs, legMs, random, holding);
    const connection = {
      minRttUs: us(sample.tcpMinMs),
      acceptRttUs: us(sample.tcpMinMs),
      helloDelayUs: us(sample.helloDelayMs),
      tlsHandshakeUs: us(sample.tlsHandshakeMs),
      syn: { ipVersion: 4, ttl: 52, mss },
    };
    return { position: from, channel: { connection, roundTripUs: sample.pings.map(us), sourceAddress: address } };
  });
  const [edge, ...landmarks] = channels;
  return {
    bundle: create(SignalBundleSchema, {
      sessionRef: "bench",
      sourceAddress: address,
      userAgent,
      edgePosition: edge?.position,
      connection: edge?.channel.connection,
      latencyChannel: edge?.channel,
    }),
    report: reportOf(country),
    measurements: landmarks.map((each) => create(LandmarkMeasurementSchema, each)),
  };
}

function us(ms: number): bigint {
  return BigInt(Math.max(1, Math.round(ms * 1000)));
}

/**
 * Finds an IPv4 address of each country that the IP database places there and that is of no hosting network or carrier
 * with its own splitting. Empty where there is none. Throws where the AS data is missing.
 */
export function findAddresses(ipCountry: IpCountry, networks: NetworkClasses): Map<string, string> {
  const folder = dirname(createRequire(import.meta.url).resolve("@ip-location-db/asn/package.json"));
  const found = new Map<string, string>();
  for (const line of readFileSync(join(folder, "asn-ipv4-num.csv"), "utf8").split("\n")) {
    const first = Number(/^(\d+),/.exec(line)?.[1] ?? Number.NaN);
    if (!Number.isInteger(first)) continue;
    const value = first + 1;
    const address = [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255].join(".");
    const country = ipCountry(address);
    if (country !== "" && !found.has(country) && networks(address) === undefined) found.set(country, address);
  }
  return found;
}

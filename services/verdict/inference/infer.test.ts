import { create } from "@bufbuild/protobuf";
import { ConnectionTiming_Degradation as Degradation } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import { LandmarkMeasurementSchema } from "@octomesh/proto/octomesh/edge/v1/landmark_measurement_pb";
import { SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import {
  VerdictEvidence_EvidenceClass as Evidence,
  VerdictEvidence_TimingQuality as Quality,
} from "@octomesh/proto/octomesh/verdict/v1/verdict_evidence_pb";
import { Verdict_Alarm as Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import fc from "fast-check";
import { expect, test } from "vitest";
import { createInference, type Inference, type SessionSignals } from "./infer.ts";
import { openIpCountry } from "./ip-country.ts";
import type { NetworkClass } from "./network-classes.ts";

const ipCountry = await openIpCountry();
const engine = createInference(ipCountry);
const german = "141.1.1.1";
const berlin = { latitude: 52.5, longitude: 13.4 };
const frankfurt = { latitude: 50.1, longitude: 8.7 };
const madrid = { latitude: 40.4, longitude: -3.7 };
const paris = { latitude: 48.9, longitude: 2.4 };

/** A session with an edge in Berlin: direct, clean and German, except where told otherwise. Milliseconds. */
interface Scene {
  readonly tcpMs?: number;
  readonly pingMs?: number;
  readonly pings?: number;
  readonly helloMs?: number;
  readonly handshakeMs?: number;
  readonly icmpMs?: number;
  readonly mss?: number;
  readonly ttl?: number;
  readonly userAgent?: string;
  readonly address?: string;
  readonly channelAddress?: string;
  readonly zone?: string;
  readonly languages?: readonly string[];
  readonly mobile?: boolean;
  readonly degradation?: Degradation;
  readonly landmarks?: readonly { at: { latitude: number; longitude: number }; ms: number }[];
}

function us(ms: number): bigint {
  return BigInt(Math.round(ms * 1000));
}

function sceneOf(scene: Scene): SessionSignals {
  const { tcpMs = 20, pingMs = 20.5, pings = 20, address = german, degradation = Degradation.UNSPECIFIED } = scene;
  const connection = {
    minRttUs: us(tcpMs),
    acceptRttUs: us(tcpMs),
    helloDelayUs: us(scene.helloMs ?? 1),
    tlsHandshakeUs: us(scene.handshakeMs ?? 0),
    syn: { ttl: scene.ttl ?? 55, mss: scene.mss ?? 1460 },
    degradation,
  };
  const trips = (ms: number, count: number): bigint[] =>
    Array.from({ length: count }, (_, index) => us(ms + 0.02 * index));
  return {
    bundle: create(SignalBundleSchema, {
      sourceAddress: address,
      edgePosition: berlin,
      userAgent: scene.userAgent ?? "Mozilla/5.0 (X11; Linux x86_64)",
      icmpRttUs: us(scene.icmpMs ?? 0),
      connection,
      latencyChannel: {
        connection,
        roundTripUs: trips(pingMs, pings),
        sourceAddress: scene.channelAddress ?? address,
      },
    }),
    report: {
      version: 1,
      sessionRef: "s",
      nonce: "",
      mode: "full",
      languages: scene.languages ?? ["de-DE"],
      timeZone: scene.zone ?? "Europe/Berlin",
      utcOffsetMinutes: -60,
      platform: "Linux",
      mobile: scene.mobile ?? false,
      clockStepMs: 0.1,
      roundTrips: [],
      measurements: [],
      end: "done",
    },
    measurements: (scene.landmarks ?? []).map(({ at, ms }) =>
      create(LandmarkMeasurementSchema, {
        position: at,
        channel: { connection: { minRttUs: us(ms) }, roundTripUs: trips(ms + 0.5, 12), sourceAddress: address },
      }),
    ),
  };
}

function judge(scene: Scene, network?: NetworkClass): Inference {
  return createInference(ipCountry, () => network).infer(sceneOf(scene));
}

function weight({ findings }: Inference, evidenceClass: Evidence): number {
  return findings.find((finding) => finding.evidenceClass === evidenceClass)?.weightBits ?? 0;
}

test("a direct session raises no alarm, and its country is nearly certain", () => {
  const direct = judge({});
  expect(direct).toMatchObject({
    country: "DE",
    alarm: Alarm.NONE,
    location: berlin,
    landmarks: 1,
    pings: 20,
    timingQuality: Quality.FULL,
  });
  expect(direct.confidence).toBeGreaterThan(0.9);
  expect(direct.findings).toHaveLength(1);
  expect(weight(direct, Evidence.CROSS_LAYER_GAP)).toBeLessThan(0);
  expect(direct.region).toHaveLength(64);
});

test("a proxy's leg of 5 ms is a medium alarm, and stays one however large the gap is by itself", () => {
  expect(judge({ tcpMs: 5.5, pingMs: 11.7 }).alarm).toBe(Alarm.MEDIUM);
  expect(judge({ tcpMs: 5.5, pingMs: 90 }).alarm).toBe(Alarm.MEDIUM);
  expect(judge({ tcpMs: 5.5, pingMs: 8 }).alarm).toBe(Alarm.NONE);
});

test("a gap and a late hello together are a high alarm", () => {
  const answer = judge({ tcpMs: 5.5, pingMs: 67.7, helloMs: 63, handshakeMs: 75 });
  expect(answer.alarm).toBe(Alarm.HIGH);
  expect(weight(answer, Evidence.HELLO_DELAY)).toBeGreaterThan(0);
});

test("a late hello alone is no alarm, and none at all where the handshake then took one round trip", () => {
  expect(judge({ helloMs: 200 }).alarm).toBe(Alarm.NONE);
  expect(judge({ helloMs: 200, pings: 0 }).alarm).toBe(Alarm.NONE);
  expect(weight(judge({ helloMs: 200, handshakeMs: 22 }), Evidence.HELLO_DELAY)).toBe(0);
});

test("where a proxy ends the connection, the country is the exit's: confidence falls, and no place is named", () => {
  const direct = judge({});
  const near = judge({ tcpMs: 5, pingMs: 12 });
  const far = judge({ tcpMs: 5, pingMs: 105 });
  expect(near.confidence).toBeLessThan(direct.confidence / 2);
  expect(far.confidence).toBeLessThan(near.confidence);
  expect(far).toMatchObject({ country: "DE", radiusKm: 0 });
  expect(far.location).toBeUndefined();
  // The browser's own round trips still bound where it is.
  expect(far.region).toHaveLength(0);
  expect(near.region).toHaveLength(64);
});

test("carriers that split connections raise no more than a low alarm by gap and hello", () => {
  for (const pingMs of [12, 70, 600]) {
    const answer = judge({ tcpMs: 5, pingMs, helloMs: pingMs - 5, handshakeMs: pingMs }, "splitting-carrier");
    expect(answer.alarm).toBeLessThanOrEqual(Alarm.LOW);
    expect(weight(answer, Evidence.SPLITTING_CARRIER)).toBeLessThan(0);
  }
});

test("a clean gap does not speak against tunnels", () => {
  const tunnel = { icmpMs: 6.5, tcpMs: 30, pingMs: 30.5, mss: 1380 };
  const clean = judge(tunnel);
  expect(clean.alarm).toBeGreaterThanOrEqual(Alarm.MEDIUM);
  expect(weight(clean, Evidence.ECHO_GAP)).toBeGreaterThan(4);
  expect(weight(clean, Evidence.TUNNEL_SEGMENT_SIZE)).toBeGreaterThan(0);
  expect(judge({ ...tunnel, mss: 1460 }).alarm).toBe(Alarm.MEDIUM);
});

test("an echo that a mobile carrier's gateway may have answered counts for little", () => {
  expect(judge({ icmpMs: 5, tcpMs: 30, pingMs: 30.4, mobile: true }).alarm).toBeLessThan(Alarm.MEDIUM);
});

test("a browser that says it is a phone is no phone where its SYN is that of Windows", () => {
  const claimed = { icmpMs: 5, tcpMs: 30, pingMs: 30.4, mobile: true, userAgent: "Mozilla/5.0 (Windows NT 10.0)" };
  expect(judge({ ...claimed, ttl: 120 }).alarm).toBe(Alarm.MEDIUM);
  expect(judge({ ...claimed, ttl: 55 }).findings.every(({ weightBits }) => weightBits < 4)).toBe(true);
});

test.each(["141.1.1.2", "2a00::1"])("a channel that the browser sent another way (%s) clears nothing", (other) => {
  const scene = { helloMs: 80, channelAddress: other };
  const signals = sceneOf(scene);
  const channel = signals.bundle.latencyChannel?.connection;
  if (channel !== undefined) channel.helloDelayUs = 1000n;
  const answer = createInference(ipCountry, () => "hosting").infer(signals);
  expect(weight(answer, Evidence.CROSS_LAYER_GAP)).toBe(0);
  expect(weight(answer, Evidence.HELLO_DELAY)).toBeGreaterThan(0);
  // Nothing is known of the report's connection that was not known without the channel.
  signals.bundle.latencyChannel = undefined;
  const without = createInference(ipCountry, () => "hosting").infer(signals);
  expect(answer.alarm).toBeGreaterThanOrEqual(without.alarm);
  // What speaks against the channel's own way counts all the same.
  expect(weight(judge({ channelAddress: other, tcpMs: 5, pingMs: 60 }), Evidence.CROSS_LAYER_GAP)).toBeGreaterThan(5);
});

test("an echo of another address than the report's says nothing of it", () => {
  const scene = { icmpMs: 5, tcpMs: 30, pingMs: 30.4 };
  expect(weight(judge(scene), Evidence.ECHO_GAP)).toBeGreaterThan(4);
  expect(weight(judge({ ...scene, channelAddress: "2a00::1" }), Evidence.ECHO_GAP)).toBe(0);
});

test("an address that cannot be where it seems is found without a channel too", () => {
  const signals = sceneOf({ tcpMs: 5, zone: "Australia/Sydney", languages: ["en-AU"] });
  signals.bundle.latencyChannel = undefined;
  const answer = createInference(() => "AU").infer(signals);
  expect(answer).toMatchObject({ country: "", confidence: 0, alarm: Alarm.HIGH });
});

test("an address of a country that no signal can have reached alarms highly, and names no country", () => {
  const australian = { address: "1.1.1.1", zone: "Australia/Sydney", languages: ["en-AU"] };
  const answer = createInference(() => "AU").infer(sceneOf({ ...australian, tcpMs: 5, pingMs: 5.4 }));
  expect(answer).toMatchObject({ country: "", confidence: 0, alarm: Alarm.HIGH });
  expect(answer.location).toBeUndefined();
  expect(weight(answer, Evidence.IMPOSSIBLE_LOCATION)).toBeGreaterThan(10);
  // The exit is near the edge, whatever the browser's own round trip is.
  const proxied = createInference(() => "AU").infer(sceneOf({ ...australian, tcpMs: 5, pingMs: 300 }));
  expect(proxied.alarm).toBe(Alarm.HIGH);
  const carrier = createInference(
    () => "AU",
    () => "splitting-carrier",
  ).infer(sceneOf({ ...australian, tcpMs: 5, pingMs: 600 }));
  expect(weight(carrier, Evidence.IMPOSSIBLE_LOCATION)).toBe(0);
});

test("round trips that the country does not explain raise an alarm, those over a satellite a low one at most", () => {
  const ways = (ms: number) => [
    { at: frankfurt, ms },
    { at: madrid, ms: ms + 20 },
    { at: paris, ms: ms + 8 },
  ];
  const tunnel = judge({ tcpMs: 180, pingMs: 180.5, landmarks: ways(182) });
  expect(tunnel.alarm).toBe(Alarm.MEDIUM);
  expect(weight(tunnel, Evidence.UNEXPLAINED_DISTANCE)).toBeGreaterThan(4);
  expect(judge({ tcpMs: 20, pingMs: 20.5, landmarks: ways(22) }).alarm).toBe(Alarm.NONE);
  expect(judge({ tcpMs: 620, pingMs: 620.5, landmarks: ways(622) }).alarm).toBeLessThanOrEqual(Alarm.LOW);
  // One landmark's slow path looks like any tunnel.
  expect(judge({ tcpMs: 180, pingMs: 180.5 }).alarm).toBeLessThan(Alarm.MEDIUM);
});

test.each<[string, Scene, NetworkClass | undefined, Evidence]>([
  ["a hosting network", {}, "hosting", Evidence.HOSTING_NETWORK],
  ["a foreign time zone", { zone: "Asia/Tokyo" }, undefined, Evidence.TIME_ZONE_MISMATCH],
  ["a tunnel's segments", { mss: 1359 }, undefined, Evidence.TUNNEL_SEGMENT_SIZE],
])("%s alone is a low alarm", (_, scene, network, evidenceClass) => {
  const answer = judge(scene, network);
  expect(answer.alarm).toBe(Alarm.LOW);
  expect(weight(answer, evidenceClass)).toBeGreaterThan(1);
});

test.each<[string, Scene, Evidence]>([
  ["a foreign language", { languages: ["ja-JP"] }, Evidence.LANGUAGE_MISMATCH],
  ["another system", { userAgent: "Mozilla/5.0 (Windows NT 10.0)", ttl: 55 }, Evidence.SYSTEM_MISMATCH],
  ["another address of the channel", { channelAddress: "141.1.1.2" }, Evidence.ADDRESS_MISMATCH],
])("%s alone is found and no alarm", (_, scene, evidenceClass) => {
  const answer = judge(scene);
  expect(answer.alarm).toBe(Alarm.NONE);
  expect(weight(answer, evidenceClass)).toBeGreaterThan(0);
});

test("what says nothing is not found", () => {
  const quiet = judge({
    zone: "Etc/UTC",
    languages: ["en-US"],
    channelAddress: "2001:db8::1",
    userAgent: "curl",
    mss: 1452,
  });
  expect(quiet.findings).toEqual([]);
});

test.each([Degradation.NOT_LINUX, Degradation.BEHIND_PROXY, Degradation.NO_PERMISSION, Degradation.UNAVAILABLE])(
  "timing that an edge could not take (%s) raises nothing",
  (degradation) => {
    const answer = judge({ degradation, tcpMs: 1, pingMs: 20, helloMs: 90, icmpMs: 0.5, mss: 1380, ttl: 128 });
    expect(answer).toMatchObject({ alarm: Alarm.NONE, timingQuality: Quality.NONE, country: "DE", findings: [] });
  },
);

test("few pings or none are partial timing", () => {
  expect(judge({ pings: 9 }).timingQuality).toBe(Quality.PARTIAL);
  expect(judge({ pings: 0 })).toMatchObject({ timingQuality: Quality.PARTIAL, alarm: Alarm.NONE, region: [] });
});

test("an address without a country leaves the rest", () => {
  const answer = judge({ address: "10.0.0.1", zone: "Asia/Tokyo", tcpMs: 5, pingMs: 70, helloMs: 66, handshakeMs: 71 });
  expect(answer).toMatchObject({ country: "", confidence: 0, alarm: Alarm.HIGH });
});

test("the alarm never falls as the gap grows", () => {
  const ms = fc.double({ min: 0.01, max: 200, noNaN: true });
  const network = fc.constantFrom<(NetworkClass | undefined)[]>(undefined, "hosting", "splitting-carrier");
  const helloMs = fc.constantFrom(1, 12, 80);
  fc.assert(
    fc.property(ms, ms, network, helloMs, fc.constantFrom("Asia/Tokyo", "Europe/Berlin"), (a, b, of, hello, zone) => {
      const alarm = (tcpMs: number) => judge({ tcpMs, pingMs: 200.5, helloMs: hello, zone }, of).alarm;
      expect(alarm(Math.min(a, b))).toBeGreaterThanOrEqual(alarm(Math.max(a, b)));
    }),
  );
});

test("no signal that is taken away raises the alarm", () => {
  const scene = fc.record<Scene>({
    tcpMs: fc.double({ min: 1, max: 150, noNaN: true }),
    pingMs: fc.double({ min: 150, max: 300, noNaN: true }),
    helloMs: fc.constantFrom(1, 30),
    icmpMs: fc.constantFrom(0, 1, 100),
    mss: fc.constantFrom(1460, 1380, 1300),
    ttl: fc.constantFrom(55, 120),
    zone: fc.constantFrom("Europe/Berlin", "Asia/Tokyo"),
    languages: fc.constantFrom(["de"], ["ja"]),
    landmarks: fc.constantFrom([], [{ at: madrid, ms: 200 }], [{ at: madrid, ms: 31 }]),
  });
  const without: readonly Scene[] = [
    { icmpMs: 0 },
    { mss: 0 },
    { ttl: 0 },
    { zone: "" },
    { languages: [] },
    { channelAddress: "" },
    { helloMs: 0 },
  ];
  fc.assert(
    fc.property(scene, fc.constantFrom(...without), (given, missing) => {
      // A gap is there, so that what is taken away cannot be what spoke against.
      const whole = judge(given).alarm;
      expect(judge({ ...given, ...missing }).alarm).toBeLessThanOrEqual(whole);
    }),
  );
});

test("carriers never reach a high alarm by what their splitting causes", () => {
  const ms = fc.double({ min: 0, max: 2000, noNaN: true });
  fc.assert(
    fc.property(ms, ms, ms, (tcpMs, more, helloMs) => {
      const scene = { tcpMs: 0.1 + tcpMs, pingMs: 0.1 + tcpMs + more, helloMs, handshakeMs: tcpMs + helloMs };
      expect(judge(scene, "splitting-carrier").alarm).toBeLessThan(Alarm.HIGH);
    }),
  );
});

test("any signals are judged the same twice, in bounded, finite numbers and with findings in order", () => {
  const count = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
  const int = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
  const connection = fc.record({
    minRttUs: count,
    acceptRttUs: count,
    helloDelayUs: count,
    tlsHandshakeUs: count,
    mss: int,
    syn: fc.record({ ttl: int, mss: int, window: int }),
    degradation: fc.integer({ min: 0, max: 9 }),
  });
  const address = fc.oneof(fc.ipV4(), fc.ipV6(), fc.string());
  const roundTripUs = fc.array(fc.oneof(count, fc.bigInt({ min: 0n, max: 400_000n })), { maxLength: 64 });
  const channel = fc.record({ connection, roundTripUs, sourceAddress: address });
  const position = fc.oneof(
    fc.record({ latitude: fc.double(), longitude: fc.double() }),
    fc.record({
      latitude: fc.double({ min: -90, max: 90, noNaN: true }),
      longitude: fc.double({ min: -180, max: 180, noNaN: true }),
    }),
  );
  const signals = fc.record({
    bundle: fc.record({
      sourceAddress: address,
      connection,
      latencyChannel: channel,
      edgePosition: position,
      icmpRttUs: count,
      userAgent: fc.string(),
    }),
    measurements: fc.array(fc.record({ channel, position }), { maxLength: 16 }),
    languages: fc.array(fc.string(), { maxLength: 10 }),
    timeZone: fc.string(),
    network: fc.constantFrom<(NetworkClass | undefined)[]>(undefined, "hosting", "splitting-carrier"),
  });
  fc.assert(
    fc.property(signals, ({ bundle, measurements, languages, timeZone, network }) => {
      const given: SessionSignals = {
        bundle: create(SignalBundleSchema, bundle),
        measurements: measurements.map((each) => create(LandmarkMeasurementSchema, each)),
        report: { ...sceneOf({}).report, languages, timeZone },
      };
      const classed = createInference(ipCountry, () => network);
      const answer = classed.infer(given);
      expect(classed.infer(given)).toEqual(answer);
      expect(answer.confidence).toBeGreaterThanOrEqual(0);
      expect(answer.confidence).toBeLessThanOrEqual(1);
      expect(answer.radiusKm).toBeGreaterThanOrEqual(0);
      expect(answer.radiusKm).toBeLessThanOrEqual(20_038);
      expect(answer.region.length).toBeLessThanOrEqual(256);
      for (const { latitude, longitude } of answer.region) {
        expect(Math.abs(latitude)).toBeLessThanOrEqual(90);
        expect(Math.abs(longitude)).toBeLessThanOrEqual(180);
      }
      expect([Alarm.NONE, Alarm.LOW, Alarm.MEDIUM, Alarm.HIGH]).toContain(answer.alarm);
      expect(answer.country).toMatch(/^([A-Z]{2})?$/);
      const weights = answer.findings.map(({ weightBits }) => weightBits);
      expect(weights.every(Number.isFinite)).toBe(true);
      expect(weights).toEqual([...weights].sort((a, b) => b - a));
    }),
  );
});

test("the model is named", () => {
  expect(engine.infer(sceneOf({})).modelVersion).toBe("disk-3");
});

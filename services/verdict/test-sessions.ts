import {
  VerdictEvidence_EvidenceClass as Evidence,
  VerdictEvidence_TimingQuality as Quality,
} from "@octomesh/proto/octomesh/verdict/v1/verdict_evidence_pb";
import { Verdict_Alarm as Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import { countryFacts } from "./inference/country-facts.ts";
import type { Inference } from "./inference/infer.ts";
import type { SessionKey } from "./session-store.ts";

/** What a test session comes to: the same each time. `pending` is never decided. */
export type TestSession = { readonly state: "ready"; readonly inference: Inference } | { readonly state: "collecting" };

/** Version of the model that test sessions name. */
export const testModelVersion = "test-1";

type Outcome = Pick<Inference, "confidence" | "alarm" | "findings">;

// Weights as the model gives them, whose sums are in the alarms' bands.
const outcomes: Readonly<Record<string, Outcome>> = {
  clean: {
    confidence: 0.96,
    alarm: Alarm.NONE,
    findings: [{ evidenceClass: Evidence.CROSS_LAYER_GAP, weightBits: -4 }],
  },
  proxy: {
    confidence: 0.5,
    alarm: Alarm.HIGH,
    findings: [
      { evidenceClass: Evidence.CROSS_LAYER_GAP, weightBits: 8 },
      { evidenceClass: Evidence.TIME_ZONE_MISMATCH, weightBits: 2.5 },
    ],
  },
  vpn: {
    confidence: 0.83,
    alarm: Alarm.MEDIUM,
    findings: [
      { evidenceClass: Evidence.TUNNEL_SEGMENT_SIZE, weightBits: 4 },
      { evidenceClass: Evidence.UNEXPLAINED_DISTANCE, weightBits: 3.5 },
    ],
  },
  unknown: { confidence: 0, alarm: Alarm.NONE, findings: [] },
};

/**
 * The test session that a reference names, `test_<country>_<clean|proxy|vpn|unknown|pending>` such as `test_de_clean`.
 * Undefined for every other reference, for codes of no country, and outside of sandboxes: there the reference is one as
 * any other.
 */
export function testSessionOf({ sandbox, ref }: SessionKey): TestSession | undefined {
  if (!sandbox) return undefined;
  const [, code = "", name = ""] = /^test_([a-z]{2})_(clean|proxy|vpn|unknown|pending)$/.exec(ref) ?? [];
  const facts = countryFacts(code.toUpperCase());
  if (facts === undefined) return undefined;
  if (name === "pending") return { state: "collecting" };
  const outcome = outcomes[name];
  if (outcome === undefined) return undefined;
  const isKnown = outcome.confidence > 0;
  return {
    state: "ready",
    inference: {
      ...outcome,
      country: isKnown ? code.toUpperCase() : "",
      ...(isKnown ? { location: facts.point } : {}),
      radiusKm: isKnown ? facts.radiusKm : 0,
      region: [],
      timingQuality: isKnown ? Quality.FULL : Quality.NONE,
      pings: isKnown ? 20 : 0,
      landmarks: isKnown ? 1 : 0,
      modelVersion: testModelVersion,
    },
  };
}

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type VerdictEvidence, VerdictEvidenceSchema } from "@octomesh/proto/octomesh/verdict/v1/verdict_evidence_pb";
import { type Verdict, VerdictSchema } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import type { Inference } from "./inference/infer.ts";
import type { SessionReading, StoredVerdict } from "./session-store.ts";
import type { VerdictTokens } from "./verdict-token.ts";

/** A verdict with its token, and what speaks for it. */
export interface Decision {
  readonly verdict: Verdict;
  readonly evidence: VerdictEvidence;
}

const maxRadiusKm = 20_038;
const maxVertices = 256;
const maxFindings = 32;

/**
 * Makes the verdict of what the signals come to, and signs it. Places are rounded to a tenth of a degree and radii up to
 * a kilometre: nothing finer is known.
 */
export async function decideSession(
  inference: Inference,
  session: {
    readonly orgId: string;
    readonly ref: string;
    readonly nonce: string;
    readonly createMs: number;
    readonly expireMs: number;
  },
  tokens: VerdictTokens,
): Promise<Decision> {
  const { location, region, findings } = inference;
  const createTime = timestampFromMs(session.createMs);
  const verdict = create(VerdictSchema, {
    sessionRef: session.ref,
    country: inference.country,
    confidence: Math.min(1, Math.max(0, inference.confidence)),
    alarm: inference.alarm,
    ...(location === undefined
      ? {}
      : {
          estimatedLocation: { latitude: tenth(location.latitude), longitude: tenth(location.longitude) },
          confidenceRadiusKm: Math.min(maxRadiusKm, Math.ceil(Math.max(0, inference.radiusKm))),
        }),
    // A ring that lost vertices could leave out where the session is. A hundredth of a degree is a kilometre, of reaches
    // that have two hundred to spare.
    feasibleRegion:
      region.length > maxVertices
        ? []
        : region.map(({ latitude, longitude }) => ({ latitude: hundredth(latitude), longitude: hundredth(longitude) })),
    createTime,
    expireTime: timestampFromMs(session.expireMs),
    modelVersion: inference.modelVersion,
    nonce: session.nonce,
  });
  verdict.token = await tokens.sign(session.orgId, verdict);
  const evidence = create(VerdictEvidenceSchema, {
    sessionRef: session.ref,
    findings: findings.slice(0, maxFindings).map(({ evidenceClass, weightBits }) => ({ evidenceClass, weightBits })),
    alarm: inference.alarm,
    timingQuality: inference.timingQuality,
    pings: inference.pings,
    landmarks: inference.landmarks,
    createTime,
  });
  return { verdict, evidence };
}

/** A decision as bytes for the store. */
export function encodeDecision({ verdict, evidence }: Decision): StoredVerdict {
  return { verdict: toBinary(VerdictSchema, verdict), evidence: toBinary(VerdictEvidenceSchema, evidence) };
}

/** The verdict that a store gave back. */
export function storedVerdict(reading: SessionReading & { state: "ready" }): Verdict {
  return fromBinary(VerdictSchema, reading.verdict);
}

/** The evidence that a store gave back. */
export function storedEvidence(reading: SessionReading & { state: "ready" }): VerdictEvidence {
  return fromBinary(VerdictEvidenceSchema, reading.evidence);
}

function hundredth(degrees: number): number {
  return Math.round(degrees * 100) / 100;
}

function tenth(degrees: number): number {
  return Math.round(degrees * 10) / 10;
}

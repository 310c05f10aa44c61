import { createHash } from "node:crypto";
import { fromBinary } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import {
  type LandmarkMeasurement,
  LandmarkMeasurementSchema,
  type SignedMeasurement,
  SignedMeasurementSchema,
} from "@octomesh/proto/octomesh/edge/v1/landmark_measurement_pb";
import type { EdgeKeys } from "./edge-keys.ts";
import { isSignedBy } from "./edge-signature.ts";

/** What measurements of landmarks are held against. */
export interface MeasurementVerifierOptions {
  readonly edgeKeys: EdgeKeys;
  /** Organisations whose landmarks are believed for every session. */
  readonly landmarkOrgs: readonly string[];
  /** How many keys that were never known are asked for, in a second and for one organisation. Default 20. */
  readonly strangersPerSecond?: number;
  /** Milliseconds of a clock that nobody sets back. */
  readonly now?: () => number;
}

/** Picks the measurements that can be believed. */
export type VerifyMeasurements = (
  signed: readonly Uint8Array[],
  session: {
    readonly orgId: string;
    readonly ref: string;
    /** When the report reached the edge, milliseconds since the Unix epoch. */
    readonly receiveMs: number;
    /** The edge that forwards the report, by its signing key and its name. */
    readonly edge: { readonly keyId: string; readonly name: string };
  },
) => Promise<LandmarkMeasurement[]>;

/** A page may measure 40 s ahead of its report. */
const maxAgeMs = 180_000;
const maxAheadMs = 60_000;

const validator = createValidator();

/**
 * Makes the verifier. A measurement is believed if a good key of the session's organisation, or of one whose landmarks
 * are believed, signed it, for this very session, about when the report was made; of one landmark the first, and none of the edge
 * itself, whose channel is in its bundle. Others are left out: browsers carry them, and what a browser made up must not spoil its report. Throws DEPENDENCY_UNAVAILABLE
 * where keys cannot be looked up.
 */
export function createMeasurementVerifier(options: MeasurementVerifierOptions): VerifyMeasurements {
  const { edgeKeys } = options;
  const mayAsk = createBudget(options.strangersPerSecond ?? 20, options.now ?? (() => performance.now()));
  const believedOrgs = new Set(options.landmarkOrgs);

  return async (signed, { orgId, ref, receiveMs, edge }) => {
    const digest = createHash("sha256").update(ref).digest();
    const believed = new Map<string, LandmarkMeasurement>();
    for (const bytes of signed) {
      const read = readMeasurement(bytes);
      if (read === undefined) continue;
      const { envelope, measurement } = read;
      const landmark = `${envelope.keyId}/${measurement.landmarkId}`;
      const ageMs =
        receiveMs - (measurement.measureTime === undefined ? Number.NaN : timestampMs(measurement.measureTime));
      if (!digest.equals(measurement.sessionDigest) || believed.has(landmark)) continue;
      // Counted twice, the best of all round trips would outweigh what the others say.
      if (landmark === `${edge.keyId}/${edge.name}`) continue;
      if (!(ageMs <= maxAgeMs && ageMs >= -maxAheadMs)) continue;
      if (!edgeKeys.isRemembered(envelope.keyId) && !mayAsk(orgId)) continue;
      const key = await edgeKeys.find(envelope.keyId);
      if (key === undefined || (key.orgId !== orgId && !believedOrgs.has(key.orgId))) continue;
      const { measurement: content, signature } = envelope;
      if (!isSignedBy(key.publicKey, "octomesh landmark measurement v1", content, signature)) continue;
      believed.set(landmark, measurement);
    }
    return [...believed.values()];
  };
}

function readMeasurement(
  bytes: Uint8Array,
): { readonly envelope: SignedMeasurement; readonly measurement: LandmarkMeasurement } | undefined {
  try {
    const envelope = fromBinary(SignedMeasurementSchema, bytes);
    if (validator.validate(SignedMeasurementSchema, envelope).kind !== "valid") return undefined;
    const measurement = fromBinary(LandmarkMeasurementSchema, envelope.measurement);
    return validator.validate(LandmarkMeasurementSchema, measurement).kind === "valid"
      ? { envelope, measurement }
      : undefined;
  } catch {
    return undefined;
  }
}

/** So much in each second and for each organisation: invented key ids must not become as many questions to identity. */
function createBudget(perSecond: number, now: () => number): (orgId: string) => boolean {
  let second = Number.NaN;
  const spent = new Map<string, number>();
  return (orgId) => {
    const current = Math.floor(now() / 1000);
    if (current !== second) spent.clear();
    second = current;
    const count = spent.get(orgId) ?? 0;
    if (count >= perSecond) return false;
    spent.set(orgId, count + 1);
    return true;
  };
}

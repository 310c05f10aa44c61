import { fromBinary } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import { fail, Reason } from "@octomesh/mesh/errors";
import { type SignalBundle, SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";

/** How long after their arrival at the edge signals are taken; edges try for two minutes. */
export const maxBundleAgeMs = 300_000;
/** How far an edge's clock may be ahead. */
export const maxBundleAheadMs = 60_000;

const validator = createValidator();

/**
 * Reads the bytes that an edge signed, within the contract's bounds and fresh. Throws SIGNALS_INCOMPLETE, or
 * VALIDATION_FAILED for a time that is out of bounds; errors name fields and show no value.
 */
export function readSignalBundle(bytes: Uint8Array, nowMs: number): SignalBundle {
  let bundle: SignalBundle;
  try {
    bundle = fromBinary(SignalBundleSchema, bytes);
  } catch {
    throw fail(Reason.SIGNALS_INCOMPLETE, "the bundle cannot be read", { field: "signed_bundle" });
  }
  const result = validator.validate(SignalBundleSchema, bundle);
  if (result.kind !== "valid") {
    const [first] = result.kind === "invalid" ? (result.violations[0]?.field ?? []) : [];
    const field = first?.kind === "field" ? first.name : "signed_bundle";
    throw fail(Reason.SIGNALS_INCOMPLETE, `${field} of the bundle is missing, or is not what it must be`, { field });
  }
  const ageMs = bundle.receiveTime === undefined ? Number.NaN : nowMs - timestampMs(bundle.receiveTime);
  if (!(ageMs <= maxBundleAgeMs && ageMs >= -maxBundleAheadMs)) {
    const problem = ageMs > 0 ? "the signals are too old" : "the signals are of a time to come";
    throw fail(Reason.VALIDATION_FAILED, `${problem}: the edge's clock may be wrong`, { field: "receive_time" });
  }
  return bundle;
}

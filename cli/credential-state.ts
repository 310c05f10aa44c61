import { type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";

/** Whether a credential is good, by the times that the mesh gives for it: a revoked one is revoked, however old. */
export function credentialState(
  times: { revokeTime?: Timestamp | undefined; expireTime?: Timestamp | undefined },
  nowMs: number,
): "active" | "expired" | "revoked" {
  if (times.revokeTime !== undefined) return "revoked";
  return times.expireTime !== undefined && timestampMs(times.expireTime) <= nowMs ? "expired" : "active";
}

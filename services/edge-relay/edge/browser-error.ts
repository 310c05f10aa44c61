import { Code } from "@connectrpc/connect";
import { Reason } from "@octomesh/mesh/errors";

/** What a browser is told of a report that was refused. */
export interface BrowserError {
  readonly status: number;
  readonly code: string;
}

/** What an error of the verdict service means for the bundle that it answers. */
export type Refusal =
  /** The bundle is refused for good. */
  | { readonly kind: "refused"; readonly error: BrowserError }
  /** The licence has used up what it may for now; the bundle may come again. */
  | { readonly kind: "limited"; readonly error: BrowserError }
  /** The service answered that it failed on this bundle. */
  | { readonly kind: "failed" }
  /** Nobody could take the bundle. */
  | { readonly kind: "away" };

/** What a browser is told where the edge can neither forward a report nor keep it. */
export const overloaded: BrowserError = { status: 503, code: "overloaded" };

/** What a browser is told where the edge has no kit, or forwards to something that is no verdict service. */
export const unprovisioned: BrowserError = { status: 503, code: "edge_unprovisioned" };

const missingFields: BrowserError = { status: 400, code: "missing_fields" };
const licenseInvalid: BrowserError = { status: 401, code: "license_invalid" };
const rateLimited: BrowserError = { status: 429, code: "rate_limited" };

const refusals: ReadonlyMap<Reason, BrowserError> = new Map([
  [Reason.SIGNALS_INCOMPLETE, missingFields],
  [Reason.VALIDATION_FAILED, missingFields],
  [Reason.REQUEST_MALFORMED, missingFields],
  [Reason.REQUEST_TOO_LARGE, { status: 413, code: "too_large" }],
  [Reason.SESSION_REPORTED, { status: 409, code: "session_reported" }],
  [Reason.NONCE_MISMATCH, { status: 403, code: "nonce_mismatch" }],
  [Reason.CLIENT_TOO_OLD, { status: 400, code: "client_too_old" }],
  [Reason.EDGE_CERTIFICATE_REQUIRED, { status: 401, code: "client_cert_required" }],
  [Reason.EDGE_CERTIFICATE_REVOKED, { status: 403, code: "client_cert_revoked" }],
  [Reason.EDGE_CERTIFICATE_MISMATCH, { status: 403, code: "client_cert_mismatch" }],
  [Reason.EDGE_SIGNATURE_REQUIRED, { status: 401, code: "edge_signature_required" }],
  [Reason.EDGE_KEY_UNKNOWN, { status: 401, code: "edge_key_unknown" }],
  [Reason.EDGE_SIGNATURE_INVALID, { status: 401, code: "edge_signature_invalid" }],
  [Reason.CREDENTIAL_MISSING, licenseInvalid],
  [Reason.CREDENTIAL_MALFORMED, licenseInvalid],
  [Reason.CREDENTIAL_UNKNOWN, licenseInvalid],
  [Reason.CREDENTIAL_REVOKED, { status: 403, code: "license_revoked" }],
  [Reason.CREDENTIAL_EXPIRED, { status: 403, code: "license_expired" }],
]);

/** Reasons for which the same bundle is taken at another time. */
const passing: ReadonlySet<Reason> = new Set([
  Reason.OVERLOADED,
  Reason.STORAGE_FULL,
  Reason.TRANSACTION_CONFLICT,
  Reason.CANCELLED,
  Reason.DEADLINE_EXCEEDED,
  Reason.SERVICE_UNAVAILABLE,
  Reason.DEPENDENCY_UNAVAILABLE,
  Reason.REVOCATIONS_STALE,
  Reason.EDGE_UNPROVISIONED,
]);

/** Codes of a refusal for good that has no code of its own, and of answers that are no verdict service's. */
const byCode: ReadonlyMap<Code, BrowserError> = new Map([
  [Code.InvalidArgument, missingFields],
  [Code.OutOfRange, missingFields],
  [Code.FailedPrecondition, missingFields],
  [Code.AlreadyExists, missingFields],
  [Code.Unauthenticated, licenseInvalid],
  [Code.PermissionDenied, licenseInvalid],
  [Code.NotFound, unprovisioned],
  [Code.Unimplemented, unprovisioned],
]);

/** Codes by which a browser learns that the edge itself is refused, and not its report. */
const ofTheEdge = /^(?:client_cert|edge|license)_/;

/**
 * What a refusal is worth. A reason that says nothing of another time is for good: the same bundle would be refused
 * again. Without a reason it was no verdict service that answered, if anybody did.
 */
export function refusalOf(reason: Reason | undefined, code: Code): Refusal {
  if (reason === Reason.RATE_LIMITED || reason === Reason.QUOTA_EXCEEDED)
    return { kind: "limited", error: rateLimited };
  if (reason === Reason.INTERNAL) return { kind: "failed" };
  if (reason !== undefined && passing.has(reason)) return { kind: "away" };
  const error = (reason === undefined ? undefined : refusals.get(reason)) ?? byCode.get(code);
  if (error !== undefined) return { kind: "refused", error };
  return reason === undefined ? { kind: "away" } : { kind: "refused", error: missingFields };
}

/** Whether a code says that the edge's own licence, certificate or key is refused. */
export function isRefusalOfTheEdge(error: BrowserError): boolean {
  return ofTheEdge.test(error.code);
}

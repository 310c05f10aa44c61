import type { JsonObject } from "@bufbuild/protobuf";
import { Code, type ConnectError } from "@connectrpc/connect";
import { ViolationsSchema } from "@octomesh/proto/buf/validate/validate_pb";
import { ErrorInfoSchema, RetryInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";

/** An error as a REST answer: status, headers, and a body of `application/problem+json` (RFC 9457). */
export interface Problem {
  readonly status: number;
  readonly headers: Record<string, string>;
  readonly body: JsonObject;
}

const statuses: Record<Code, number> = {
  [Code.Canceled]: 499,
  [Code.Unknown]: 500,
  [Code.InvalidArgument]: 400,
  [Code.DeadlineExceeded]: 504,
  [Code.NotFound]: 404,
  [Code.AlreadyExists]: 409,
  [Code.PermissionDenied]: 403,
  [Code.ResourceExhausted]: 429,
  [Code.FailedPrecondition]: 409,
  [Code.Aborted]: 409,
  [Code.OutOfRange]: 400,
  [Code.Unimplemented]: 501,
  [Code.Internal]: 500,
  [Code.Unavailable]: 503,
  [Code.DataLoss]: 500,
  [Code.Unauthenticated]: 401,
};

/** Reasons whose HTTP status says more than their code's. */
const statusesOfReasons: Record<string, number> = {
  REQUEST_TOO_LARGE: 413,
  STORAGE_FULL: 507,
  RANGE_NOT_SATISFIABLE: 416,
  ETAG_MISMATCH: 412,
  CURSOR_EXPIRED: 410,
};

/**
 * Says an error in the form of RFC 9457. `code` is the reason of the contract, which programs switch on; `metadata` are
 * its facts, `violations` what validation found.
 */
export function problemOf(error: ConnectError, requestId: string): Problem {
  const info = error.findDetails(ErrorInfoSchema)[0];
  const retry = error.findDetails(RetryInfoSchema)[0];
  const violations = error.findDetails(ViolationsSchema)[0];
  const reason = info?.reason ?? "INTERNAL";
  const status = statusesOfReasons[reason] ?? statuses[error.code];
  const headers: Record<string, string> = { "content-type": "application/problem+json", "cache-control": "no-store" };
  if (status === 401) headers["www-authenticate"] = 'Bearer realm="octomesh"';
  const body: JsonObject = {
    type: "about:blank",
    title: titleOf(reason),
    status,
    detail: error.rawMessage,
    code: reason,
    ...(requestId === "" ? {} : { request_id: requestId }),
  };
  if (info !== undefined && Object.keys(info.metadata).length > 0) body.metadata = { ...info.metadata };
  if (retry?.retryDelay !== undefined) {
    const seconds = Math.max(1, Number(retry.retryDelay.seconds) + (retry.retryDelay.nanos > 0 ? 1 : 0));
    headers["retry-after"] = String(seconds);
    body.retry_after_seconds = seconds;
  }
  if (violations !== undefined) {
    body.violations = violations.violations.map((violation) => ({
      field: violation.field?.elements.map((element) => element.fieldName ?? "").join(".") ?? "",
      message: violation.message ?? "",
    }));
  }
  return { status, headers, body };
}

function titleOf(reason: string): string {
  const words = reason.toLowerCase().replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

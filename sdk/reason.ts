import { ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import { Reason } from "@octomesh/proto/octomesh/errors/v1/reason_pb";

/** Why a call failed: the closed set of `octomesh.errors.v1.Reason`, by name and without the enum's prefix. */
export type ReasonName = Exclude<keyof typeof Reason, "UNSPECIFIED">;

const domain = "octomesh";

/**
 * The reason that the mesh gave for refusing a call. Undefined where there is none: the error never reached or never
 * came from the mesh (a lost connection, a deadline that passed on this side), or its reason is newer than this SDK.
 */
export function reasonOf(error: unknown): ReasonName | undefined {
  const reason = infoOf(error)?.reason;
  if (reason === undefined || reason === "UNSPECIFIED" || !Object.hasOwn(Reason, reason)) return undefined;
  return Number.isNaN(Number(reason)) ? (reason as ReasonName) : undefined;
}

/** Whether the mesh refused a call for one of these reasons. */
export function isReason(error: unknown, ...names: readonly ReasonName[]): error is ConnectError {
  const reason = reasonOf(error);
  return reason !== undefined && names.includes(reason);
}

/** The facts of a refusal, such as the scope that was missing. Empty where it carries none. */
export function factsOf(error: unknown): Readonly<Record<string, string>> {
  return infoOf(error)?.metadata ?? {};
}

/**
 * How long the server asks to wait before the next attempt, in milliseconds: `google.rpc.RetryInfo`, else the header
 * `Retry-After` in either form (RFC 9110 section 10.2.3). Undefined where it asks for nothing. `nowMs` is the clock
 * against which a date is read.
 */
export function retryAfterMsOf(error: unknown, nowMs: number = Date.now()): number | undefined {
  if (!(error instanceof ConnectError)) return undefined;
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  if (delay !== undefined) return Math.max(0, Number(delay.seconds) * 1000 + Math.ceil(delay.nanos / 1e6));
  return parseRetryAfter(error.metadata.get("retry-after"), nowMs);
}

/** Reads a `Retry-After` header: seconds or an HTTP date. Milliseconds to wait; undefined if there is none to read. */
export function parseRetryAfter(value: string | null | undefined, nowMs: number = Date.now()): number | undefined {
  if (value === null || value === undefined) return undefined;
  if (/^\d{1,9}$/.test(value)) return Number(value) * 1000;
  const date = Date.parse(value);
  return Number.isNaN(date) ? undefined : Math.max(0, date - nowMs);
}

function infoOf(error: unknown) {
  if (!(error instanceof ConnectError)) return undefined;
  return error.findDetails(ErrorInfoSchema).find((detail) => detail.domain === domain);
}

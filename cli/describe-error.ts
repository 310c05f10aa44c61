import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import { CommanderError } from "commander";
import { CommandError } from "./command-error.ts";
import { type ExitCode, exitCode } from "./exit-code.ts";
import { HintedError } from "./hinted-error.ts";

/** Where a failure happened. */
export interface ErrorPlace {
  /** Public origin of the mesh that was called. */
  url: string;
  /** Whether a profile of this machine says so. */
  hasProfile: boolean;
}

/** What there is to say about a failure. */
export interface ErrorDescription {
  /** What `octomil` exits with. */
  code: ExitCode;
  /** What happened, for a person. */
  message: string;
  /** Why, in the closed set of the contract: `SCOPE_MISSING`; empty where the mesh did not say. */
  reason: string;
  /** The facts that the error carries. */
  metadata: Readonly<Record<string, string>>;
  /** What the person can do; empty if there is nothing to say. */
  hint: string;
  /** When trying again makes sense, in milliseconds from now. */
  retryAfterMs?: number;
}

const hints: Readonly<Record<string, string>> = {
  CREDENTIAL_MISSING: "Sign in: octomil login --code … --email …, or set OCTOMIL_API_KEY.",
  CREDENTIAL_MALFORMED: "The key or code is not complete: copy it anew.",
  CREDENTIAL_UNKNOWN: "It was not issued by this mesh; check --url and --profile.",
  CREDENTIAL_EXPIRED: "Sign in again, or create a new key: octomil api-keys create.",
  CREDENTIAL_REVOKED: "It was withdrawn; sign in again, or create a new key.",
  CREDENTIAL_USED: "It works once; ask for a new one.",
  CALLER_KIND_NOT_ALLOWED: "This needs another kind of credential: members sign in with octomil login.",
  SCOPE_MISSING: "Create a key that has the scope: octomil api-keys create --scopes ….",
  ROLE_MISSING: "An owner can change your role: octomil org members update you@example.com --role admin.",
  FEATURE_NOT_IN_PLAN: "The organisation's plan does not include it.",
  RESOURCE_NOT_FOUND: "List what there is, and check --profile: another organisation's resources are invisible.",
  PERCENTAGE_NOT_MONOTONE: "To go back: octomil rollouts rollback <id>.",
  ROLLOUT_CONFLICT: "Complete or roll back the other one first: octomil rollouts list --state running.",
  ILLEGAL_TRANSITION: "See where it stands: octomil rollouts get <id>.",
  VERSION_NOT_READY: "See the versions: octomil models versions <model>.",
  REENROLMENT_NOT_GRANTED: "Allow it: octomil devices allow-reenrolment <id>.",
  LAST_OWNER: "Make another member an owner first.",
  ALREADY_SET_UP: "Members join by invitation: octomil login --code … --email ….",
  ETAG_MISMATCH: "It changed in between; look again and repeat.",
  TRANSACTION_CONFLICT: "Repeat the command.",
  DIGEST_MISMATCH: "The file changed while it was sent; push it again.",
  STORAGE_FULL: "The mesh has no room left; free some and push again.",
  SERVICE_UNAVAILABLE: "Try again in a moment.",
  DEPENDENCY_UNAVAILABLE: "Try again in a moment.",
};

const networkCodes = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "ENOTFOUND",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ETIMEDOUT",
  "EAI_AGAIN",
  "EPIPE",
  "UND_ERR_SOCKET",
  "UND_ERR_CONNECT_TIMEOUT",
]);

/**
 * Says what a thrown value means to the person or program at the command line. `place` is the mesh that was called, if
 * one was. Never fails.
 */
export function describeError(error: unknown, place?: ErrorPlace): ErrorDescription {
  if (error instanceof HintedError) return { ...describeError(error.cause, place), hint: error.hint };
  if (error instanceof CommandError) {
    return { code: error.code, message: error.message, reason: "", metadata: {}, hint: error.hint };
  }
  if (error instanceof CommanderError) {
    return {
      code: error.exitCode === 0 ? 0 : exitCode.usage,
      message: error.message,
      reason: "",
      metadata: {},
      hint: "",
    };
  }
  const network = networkCodeOf(error);
  if (network !== undefined) {
    return {
      code: exitCode.unavailable,
      message: `the mesh${place === undefined ? "" : ` at ${place.url}`} cannot be reached (${network})`,
      reason: "",
      metadata: {},
      hint:
        place?.hasProfile === true
          ? "Is it running, and is --url right? See octomil profile show."
          : "Is it running? octomil setup and octomil login name another one with --url.",
    };
  }
  if (error instanceof ConnectError) return describeRefusal(error);
  const message = error instanceof Error ? error.message : String(error);
  if (message === "interrupted" || (error instanceof Error && error.name === "AbortError")) {
    return { code: exitCode.interrupted, message: "interrupted", reason: "", metadata: {}, hint: "" };
  }
  return { code: exitCode.failed, message, reason: "", metadata: {}, hint: "" };
}

function describeRefusal(error: ConnectError): ErrorDescription {
  const info = error.findDetails(ErrorInfoSchema)[0];
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  const header = Number(error.metadata.get("retry-after") ?? Number.NaN);
  const retryAfterMs = delay === undefined ? (Number.isFinite(header) ? header * 1000 : undefined) : durationMs(delay);
  const reason = info?.reason ?? "";
  const wait = retryAfterMs === undefined ? "" : `Try again in ${Math.max(1, Math.ceil(retryAfterMs / 1000))} s.`;
  return {
    code: exitCodeOf(error.code, reason),
    message: error.rawMessage === "" ? Code[error.code] : error.rawMessage,
    reason,
    metadata: info?.metadata ?? {},
    hint: hintOf(reason, info?.metadata ?? {}) ?? wait,
    retryAfterMs,
  };
}

function hintOf(reason: string, metadata: Readonly<Record<string, string>>): string | undefined {
  const { role = "", scope = "" } = metadata;
  if (reason === "ROLE_MISSING" && /^[a-z]{1,20}$/.test(role)) {
    return `An owner can give you the role ${role}: octomil org members update you@example.com --role ${role}.`;
  }
  if (reason === "SCOPE_MISSING" && /^[a-z_-]{1,30}:[a-z_-]{1,30}$/.test(scope)) {
    return `Create a key that has the scope: octomil api-keys create --scopes ${scope}.`;
  }
  return Object.hasOwn(hints, reason) ? hints[reason] : undefined;
}

function exitCodeOf(code: Code, reason: string): ExitCode {
  switch (code) {
    case Code.Unauthenticated:
      return exitCode.unauthenticated;
    case Code.NotFound:
      return exitCode.notFound;
    case Code.Unavailable:
    case Code.DeadlineExceeded:
      return exitCode.unavailable;
    case Code.ResourceExhausted:
      return reason === "" || reason === "RATE_LIMITED" || reason === "OVERLOADED"
        ? exitCode.rateLimited
        : exitCode.failed;
    case Code.Canceled:
      return exitCode.interrupted;
    default:
      return exitCode.failed;
  }
}

function networkCodeOf(error: unknown): string | undefined {
  let current: unknown = error;
  for (let depth = 0; depth < 5 && current instanceof Error; depth += 1) {
    const { code } = current as { code?: unknown };
    if (typeof code === "string" && networkCodes.has(code)) return code;
    const inner = current instanceof AggregateError ? current.errors[0] : current.cause;
    current = inner;
  }
  return undefined;
}

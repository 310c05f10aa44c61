import { errors, jwtVerify } from "jose";
import type { VerdictKeys } from "./verdict-keys.ts";

/** How much speaks for something that hides a session. */
export type Alarm = "none" | "low" | "medium" | "high";

/** A verdict as a token carries it, after its signature and claims were verified. */
export interface VerifiedVerdict {
  /** The reference that your backend gave the session. */
  readonly sessionRef: string;
  /** The organisation that the verdict is for. */
  readonly orgId: string;
  /** The nonce that the session was registered with; undefined where there was none. */
  readonly nonce: string | undefined;
  /** ISO 3166-1 alpha-2; undefined where the signals did not suffice. */
  readonly country: string | undefined;
  /** Probability that `country` is right, 0 to 1. */
  readonly confidence: number;
  readonly alarm: Alarm;
  /** Coarse: the middle of an area, degrees. */
  readonly estimatedLocation: { readonly lat: number; readonly lon: number } | undefined;
  /** Radius of that area, kilometres. */
  readonly confidenceRadiusKm: number | undefined;
  readonly issueTime: Date;
  readonly expireTime: Date;
}

/** Why a verdict token is not believed. */
export type VerdictTokenProblem =
  | "malformed"
  | "bad_signature"
  | "unknown_key"
  | "keys_unavailable"
  | "expired"
  | "wrong_issuer"
  | "wrong_audience"
  | "wrong_session"
  | "wrong_nonce";

/** A verdict token that is not believed. `problem` is stable, the message is for people. */
export class VerdictTokenError extends Error {
  readonly problem: VerdictTokenProblem;

  constructor(problem: VerdictTokenProblem, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "VerdictTokenError";
    this.problem = problem;
  }
}

/** What a token is held against. */
export interface VerifyVerdictOptions {
  /** `verdictKeys(baseUrl)`, or the keys of a set that you keep yourself (`createLocalJWKSet` of jose). */
  readonly keys: VerdictKeys;
  /** Your organisation's id, `org_…`: a verdict for another organisation is refused. */
  readonly audience: string;
  /** The session whose verdict you asked for: a token of another session is refused. */
  readonly sessionRef: string;
  /** With it, the token must carry this nonce. */
  readonly nonce?: string;
  /** With it, the token must be of this issuer: the mesh's trust domain. */
  readonly issuer?: string;
  /** How far clocks may differ, seconds. Default 5. */
  readonly clockToleranceSeconds?: number;
  /** The time to hold the token against. Default now. */
  readonly now?: Date;
}

const maxTokenLength = 4096;
const alarms: readonly string[] = ["none", "low", "medium", "high"] satisfies Alarm[];

/**
 * Verifies a verdict token offline: a JWS (RFC 7515) by EdDSA, of type `verdict+jwt`, for this organisation and session,
 * and in force. Throws a VerdictTokenError that says which of these it fails; nothing else is ever thrown for a token.
 */
export async function verifyVerdict(token: string, options: VerifyVerdictOptions): Promise<VerifiedVerdict> {
  if (typeof token !== "string" || token.length > maxTokenLength) {
    throw new VerdictTokenError("malformed", "a verdict token has at most 4096 characters");
  }
  // Left out, as by a variable that is not set, it would let every organisation's tokens pass.
  if (typeof options.audience !== "string" || options.audience === "") {
    throw new VerdictTokenError("wrong_audience", "`audience` is missing: it is your organisation's id");
  }
  const { payload } = await jwtVerify(token, options.keys, {
    algorithms: ["EdDSA"],
    typ: "verdict+jwt",
    audience: options.audience,
    ...(options.issuer === undefined ? {} : { issuer: options.issuer }),
    clockTolerance: options.clockToleranceSeconds ?? 5,
    currentDate: options.now ?? new Date(),
    requiredClaims: ["ref", "aud", "iat", "exp", "verdict"],
  }).catch((error: unknown) => {
    throw problemOf(error);
  });
  if (payload.ref !== options.sessionRef) {
    throw new VerdictTokenError("wrong_session", "the token is of another session");
  }
  const nonce = typeof payload.nonce === "string" && payload.nonce !== "" ? payload.nonce : undefined;
  if (options.nonce !== undefined && nonce !== options.nonce) {
    throw new VerdictTokenError("wrong_nonce", "the token carries another nonce");
  }
  const verdict = payload.verdict as Record<string, unknown> | null;
  if (typeof verdict !== "object" || verdict === null) throw malformed("verdict");
  const { country, confidence, alarm, estimatedLocation, confidenceRadiusKm } = verdict;
  if (typeof confidence !== "number" || !(confidence >= 0 && confidence <= 1)) throw malformed("confidence");
  if (typeof alarm !== "string" || !alarms.includes(alarm)) throw malformed("alarm");
  return {
    sessionRef: options.sessionRef,
    orgId: options.audience,
    nonce,
    country: typeof country === "string" && /^[A-Z]{2}$/.test(country) ? country : undefined,
    confidence,
    alarm: alarm as Alarm,
    estimatedLocation: locationOf(estimatedLocation),
    confidenceRadiusKm: typeof confidenceRadiusKm === "number" ? confidenceRadiusKm : undefined,
    issueTime: new Date((payload.iat ?? 0) * 1000),
    expireTime: new Date((payload.exp ?? 0) * 1000),
  };
}

function locationOf(value: unknown): VerifiedVerdict["estimatedLocation"] {
  if (typeof value !== "object" || value === null) return undefined;
  const { lat, lon } = value as { lat?: unknown; lon?: unknown };
  return typeof lat === "number" && typeof lon === "number" ? { lat, lon } : undefined;
}

function malformed(claim: string): VerdictTokenError {
  return new VerdictTokenError("malformed", `the token's ${claim} is not what a verdict says`);
}

function problemOf(error: unknown): VerdictTokenError {
  const cause = { cause: error };
  if (error instanceof errors.JWTExpired) return new VerdictTokenError("expired", "the token has expired", cause);
  if (error instanceof errors.JWSSignatureVerificationFailed) {
    return new VerdictTokenError("bad_signature", "the signature is not the mesh's", cause);
  }
  if (error instanceof errors.JWKSNoMatchingKey) {
    return new VerdictTokenError("unknown_key", "the token names a key that the mesh does not have", cause);
  }
  if (error instanceof errors.JWTClaimValidationFailed) {
    if (error.claim === "aud") return new VerdictTokenError("wrong_audience", "the token is for another one", cause);
    if (error.claim === "iss") return new VerdictTokenError("wrong_issuer", "the token is of another issuer", cause);
    return new VerdictTokenError("malformed", `the token's ${error.claim} is not what it must be`, cause);
  }
  if (error instanceof errors.JWKSTimeout || error instanceof TypeError || isFetchFailure(error)) {
    return new VerdictTokenError("keys_unavailable", "the mesh's keys cannot be fetched", cause);
  }
  return new VerdictTokenError("malformed", "the token is not a verdict token", cause);
}

/** jose reports a key set that was answered with another status, or with no JSON, by its base class. */
function isFetchFailure(error: unknown): boolean {
  return error instanceof errors.JOSEError && error.code === "ERR_JOSE_GENERIC";
}

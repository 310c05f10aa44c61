import { timingSafeEqual } from "node:crypto";

/** What one attempt to register a device brings along. */
export interface RegistrationAttempt {
  /** The bootstrap token or API key that the caller proved. */
  readonly tokenId: string;
  /** Keyed digest of the installation's client key; undefined where it gave none that proves anything. */
  readonly keyDigest: Uint8Array | undefined;
  /** Milliseconds since the Unix epoch. */
  readonly time: number;
}

/** A registration that was accepted: completed, or still under way. */
export interface Registration {
  readonly id: string;
  readonly tokenId: string;
  readonly keyDigest: Uint8Array | undefined;
  readonly time: number;
}

/** States of a device as this service stores them. `reserved`: an identifier whose first registration is under way. */
export type StoredState = "reserved" | "awaiting_approval" | "active" | "revoked";

/** What is known of the identifier that an attempt names. */
export interface KnownIdentifier {
  readonly state: StoredState;
  readonly reenrolmentGranted: boolean;
  /** The registration that holds; undefined while reserved. */
  readonly current: Registration | undefined;
  /** A registration under way. */
  readonly pending: Registration | undefined;
}

/** What to do with an attempt. */
export type RegistrationDecision =
  /** Nobody has the identifier: reserve it for a new device. */
  | { readonly kind: "create" }
  /** Carry on a registration under way, or answer a completed one again: the same registration, the same credential. */
  | { readonly kind: "repeat"; readonly registrationId: string }
  /** Begin a new registration of the device that has the identifier. */
  | { readonly kind: "replace" }
  /** The identifier is not the caller's to register. */
  | { readonly kind: "refuse"; readonly cause: RefusalCause };

/** Why an identifier is refused: another installation has it, is just taking it, or a member revoked it. */
export type RefusalCause = "taken" | "under_way" | "revoked";

/**
 * How long, in milliseconds, a registration can be repeated, and how long one under way keeps others out: identity's
 * grace for a lost answer.
 */
export const registrationGraceMs = 120_000;

/** A client key proves an installation from this many characters on: shorter ones can be guessed. */
export const minClientKeyLength = 16;

/**
 * Decides what becomes of an attempt to register an identifier.
 *
 * | the identifier | same token and client key | same client key only | neither |
 * | --- | --- | --- | --- |
 * | unknown | create | create | create |
 * | registration under way, within the grace | repeat | refuse | refuse |
 * | registration under way, lapsed | replace | replace | as if it were not there |
 * | held, within the grace | repeat | replace | refuse unless granted: replace |
 * | held, after the grace | replace | replace | refuse unless granted: replace |
 * | revoked | refuse unless granted: replace | ← | ← |
 *
 * The client key is what proves that it is the same installation: without one nothing is repeated.
 */
export function decideRegistration(
  known: KnownIdentifier | undefined,
  attempt: RegistrationAttempt,
  graceMs: number = registrationGraceMs,
): RegistrationDecision {
  if (known === undefined) return { kind: "create" };
  const { pending, current } = known;
  if (pending !== undefined && attempt.time - pending.time < graceMs) {
    if (isRepetition(pending, attempt)) return { kind: "repeat", registrationId: pending.id };
    return { kind: "refuse", cause: "under_way" };
  }
  if (known.state === "reserved") return { kind: "replace" };
  if (known.state === "revoked") {
    return known.reenrolmentGranted ? { kind: "replace" } : { kind: "refuse", cause: "revoked" };
  }
  if (current !== undefined && isRepetition(current, attempt) && attempt.time - current.time < graceMs) {
    return { kind: "repeat", registrationId: current.id };
  }
  if (current !== undefined && isSameKey(current.keyDigest, attempt.keyDigest)) return { kind: "replace" };
  return known.reenrolmentGranted ? { kind: "replace" } : { kind: "refuse", cause: "taken" };
}

/**
 * The state of a device whose registration completes. A device that a member approved once, and whose own installation
 * registers again, stays approved; every other waits where its token demands approval.
 */
export function stateAfterRegistration(
  known: { state: StoredState; sameInstallation: boolean },
  approvalRequired: boolean,
): "active" | "awaiting_approval" {
  if (known.sameInstallation && known.state === "active") return "active";
  if (known.sameInstallation && known.state === "awaiting_approval") return "awaiting_approval";
  return approvalRequired ? "awaiting_approval" : "active";
}

/** Whether two digests are of the same client key. Absent ones are the same as nothing. Constant time. */
export function isSameKey(left: Uint8Array | undefined, right: Uint8Array | undefined): boolean {
  return left !== undefined && right !== undefined && left.length === right.length && timingSafeEqual(left, right);
}

function isRepetition(registration: Registration, attempt: RegistrationAttempt): boolean {
  return registration.tokenId === attempt.tokenId && isSameKey(registration.keyDigest, attempt.keyDigest);
}

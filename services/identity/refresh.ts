import { timingSafeEqual } from "node:crypto";

/** How long the token that was just replaced still gets its successor again, milliseconds: for answers that were lost. */
export const refreshGraceMs = 2 * 60_000;

/** How many generations of a family are remembered. A token older than that is unknown, and refused as such. */
export const rememberedGenerations = 64;

/**
 * A family of refresh tokens: each is used once and replaced by the next generation. Only the newest is good; the one
 * before it still gets its successor within the grace. Times in milliseconds since the Unix epoch.
 */
export interface RefreshFamily {
  /** Generation of the newest token, from 1. */
  readonly generation: number;
  /** When the newest token was made. */
  readonly rotateTime: number;
  /** When the newest token expires. */
  readonly expireTime: number;
  readonly revokeTime?: number;
  /** SHA-256 of the client key that the family is bound to; undefined for none. */
  readonly clientKeyDigest?: Buffer;
}

/** A token of the family as it was presented. */
export interface PresentedToken {
  readonly generation: number;
  readonly clientKeyDigest?: Buffer;
}

/** What is to be done with a presented token. */
export type RefreshDecision =
  /** The newest token: this generation follows. */
  | { readonly kind: "rotate"; readonly generation: number }
  /** The token before, within the grace: this generation, the newest, is handed out again. */
  | { readonly kind: "repeat"; readonly generation: number }
  /** Nothing changes. */
  | { readonly kind: "refuse"; readonly cause: "expired" | "revoked" }
  /** A token came back that should not exist outside its owner's store, or not with this client key: the family ends. */
  | { readonly kind: "revoke"; readonly cause: "reused" | "client_key" };

/**
 * Decides on a presented refresh token (RFC 9700 section 4.14.2: rotation, reuse revokes the family). The grace ends
 * early when the successor itself has been used, so of two holders of one token at most one goes on for longer than
 * the grace, and none once both have shown themselves after it.
 */
export function decideRefresh(
  family: RefreshFamily,
  presented: PresentedToken,
  now: number,
  graceMs: number = refreshGraceMs,
): RefreshDecision {
  if (family.revokeTime !== undefined) return { kind: "refuse", cause: "revoked" };
  if (now >= family.expireTime) return { kind: "refuse", cause: "expired" };
  if (!isSameDigest(family.clientKeyDigest, presented.clientKeyDigest)) return { kind: "revoke", cause: "client_key" };
  if (presented.generation === family.generation) return { kind: "rotate", generation: family.generation + 1 };
  if (presented.generation === family.generation - 1 && now - family.rotateTime <= graceMs) {
    return { kind: "repeat", generation: family.generation };
  }
  return { kind: "revoke", cause: "reused" };
}

/** Whether two digests are the same, in constant time; two absent ones are. */
export function isSameDigest(a: Buffer | undefined | null, b: Buffer | undefined | null): boolean {
  if (a == null || b == null) return a == null && b == null;
  return a.length === b.length && timingSafeEqual(a, b);
}

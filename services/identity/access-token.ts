import { randomBytes } from "node:crypto";
import type { Role } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { type CryptoKey, SignJWT } from "jose";

/** `typ` of access tokens (RFC 9068 section 2.1). */
export const accessTokenType = "at+jwt";

/** `aud` of access tokens. */
export const accessTokenAudience = "octomesh";

/** A key that signs. */
export interface SigningKey {
  readonly kid: string;
  readonly privateKey: CryptoKey;
}

/** What an access token says. Times in milliseconds since the Unix epoch. */
export interface AccessTokenClaims {
  readonly issuer: string;
  readonly kind: "device" | "session";
  /** `dev_…` or `usr_…`. */
  readonly subject: string;
  readonly orgId: string;
  /** `crd_…` or `ses_…`. */
  readonly credentialId: string;
  /** Of a session's member. */
  readonly role?: Role;
  readonly plan: number;
  readonly issueTime: number;
  readonly expireTime: number;
}

/**
 * Signs an access token: a JWT (RFC 7519) by ES256 with the claims of RFC 9068 and ours: `org`, `kind`, `cid`, `role`,
 * `plan`, and `iat_ms`, the time by which revocations are compared. `expireTime` is cut to whole seconds.
 */
export async function signAccessToken(key: SigningKey, claims: AccessTokenClaims): Promise<string> {
  const { issuer, kind, subject, orgId, credentialId, role, plan, issueTime, expireTime } = claims;
  return await new SignJWT({
    org: orgId,
    kind,
    cid: credentialId,
    ...(role === undefined ? {} : { role }),
    plan,
    iat_ms: issueTime,
  })
    .setProtectedHeader({ alg: "ES256", kid: key.kid, typ: accessTokenType })
    .setIssuer(issuer)
    .setAudience(accessTokenAudience)
    .setSubject(subject)
    .setIssuedAt(Math.floor(issueTime / 1000))
    .setExpirationTime(Math.floor(expireTime / 1000))
    .setJti(randomBytes(12).toString("base64url"))
    .sign(key.privateKey);
}

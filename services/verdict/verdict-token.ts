import { createHash, createPrivateKey, createPublicKey, type KeyObject, randomBytes } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { MasterKey } from "@octomesh/mesh/master-key";
import type { Verdict } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import { SignJWT } from "jose";
import { verdictJson } from "./verdict-json.ts";

/** An Ed25519 public key in the form of RFC 8037. */
export interface VerdictKey {
  readonly kty: "OKP";
  readonly crv: "Ed25519";
  /** base64url of the 32 bytes. */
  readonly x: string;
  /** Thumbprint of the key (RFC 7638). */
  readonly kid: string;
  readonly alg: "EdDSA";
  readonly use: "sig";
}

/** Signs verdicts. */
export interface VerdictTokens {
  /**
   * The verdict as a JWS (RFC 7515) by EdDSA, of type `verdict+jwt`, with the claims `iss`, `aud` (the organisation),
   * `ref`, `nonce` where there is one, `iat`, `exp`, `jti` and `verdict`, which is as REST shows it without the region.
   */
  sign(orgId: string, verdict: Verdict): Promise<string>;
  /** The keys of the period before, of this one and of the next. */
  publicKeys(nowMs: number): VerdictKey[];
}

/** How long a key signs. */
export const keyPeriodMs = 30 * 86_400_000;

/** PKCS #8 of an Ed25519 key without its seed (RFC 8410). */
const pkcs8Prefix = Buffer.from("302e020100300506032b657004220420", "hex");

/**
 * Opens the signer. Keys are derived from the master key, one for each 30 days since the epoch, so that all replicas have
 * the same and none is stored.
 */
export function createVerdictTokens(masterKey: Pick<MasterKey, "derive">, issuer: string): VerdictTokens {
  const keys = new Map<number, { privateKey: KeyObject; publicKey: VerdictKey }>();
  const keyOf = (period: number) => {
    const known = keys.get(period);
    if (known !== undefined) return known;
    const seed = masterKey.derive(`verdict/token-key/${period}`);
    const privateKey = createPrivateKey({ key: Buffer.concat([pkcs8Prefix, seed]), format: "der", type: "pkcs8" });
    const { x = "" } = createPublicKey(privateKey).export({ format: "jwk" });
    const kid = createHash("sha256")
      .update(JSON.stringify({ crv: "Ed25519", kty: "OKP", x }))
      .digest("base64url");
    const made = { privateKey, publicKey: { kty: "OKP", crv: "Ed25519", x, kid, alg: "EdDSA", use: "sig" } as const };
    for (const old of keys.keys()) if (Math.abs(old - period) > 2) keys.delete(old);
    keys.set(period, made);
    return made;
  };

  return {
    async sign(orgId, verdict) {
      const createMs = verdict.createTime === undefined ? 0 : timestampMs(verdict.createTime);
      const expireMs = verdict.expireTime === undefined ? 0 : timestampMs(verdict.expireTime);
      const { privateKey, publicKey } = keyOf(periodOf(createMs));
      const { feasibleRegion: _, token: __, ...shown } = verdictJson(verdict);
      return await new SignJWT({
        ref: verdict.sessionRef,
        ...(verdict.nonce === "" ? {} : { nonce: verdict.nonce }),
        verdict: shown,
      })
        .setProtectedHeader({ alg: "EdDSA", kid: publicKey.kid, typ: "verdict+jwt" })
        .setIssuer(issuer)
        .setAudience(orgId)
        .setIssuedAt(Math.floor(createMs / 1000))
        .setExpirationTime(Math.floor(expireMs / 1000))
        .setJti(randomBytes(16).toString("base64url"))
        .sign(privateKey);
    },
    publicKeys(nowMs) {
      const period = periodOf(nowMs);
      return [period - 1, period, period + 1].map((each) => keyOf(each).publicKey);
    },
  };
}

function periodOf(ms: number): number {
  return Math.floor(ms / keyPeriodMs);
}

import { createRemoteJWKSet, type FlattenedJWSInput, type JWSHeaderParameters, type JWTVerifyGetKey } from "jose";
import { originOf } from "../clients.ts";

/** The public keys by which verdict tokens are verified. */
export type VerdictKeys = JWTVerifyGetKey;

/**
 * Follows the key set of a mesh, `<baseUrl>/.well-known/verdict-jwks.json`: fetched at the first token, kept for ten
 * minutes, and again at most every 30 seconds when a token names a key that is not known. Make it once per process.
 */
export function verdictKeys(baseUrl: string): VerdictKeys {
  const keys = createRemoteJWKSet(new URL(`${originOf(baseUrl)}/.well-known/verdict-jwks.json`), {
    timeoutDuration: 5000,
    cooldownDuration: 30_000,
    cacheMaxAge: 600_000,
  });
  return (header: JWSHeaderParameters, token: FlattenedJWSInput) => keys(header, token);
}

import type { Transport } from "@connectrpc/connect";

/** Why the mesh no longer takes a credential that it issued. */
export type RefusedCredential = "CREDENTIAL_EXPIRED" | "CREDENTIAL_REVOKED";

/** What a client proves itself with. One credential may serve several clients of the same mesh. */
export interface Credential {
  /**
   * The value of the `Authorization` header for a call that is about to be made; undefined sends none. `bare` reaches
   * the same mesh without a credential, for those that must renew themselves.
   */
  authorization(bare: Transport): Promise<string | undefined>;
  /**
   * Called after the mesh answered CREDENTIAL_EXPIRED or CREDENTIAL_REVOKED to a call that carried `used`. Answers whether
   * there is another value to try. Left out by credentials that cannot renew themselves.
   */
  renew?(used: string, bare: Transport, reason: RefusedCredential): Promise<boolean>;
}

/** An API key or a partner key. For servers only: such a key must not reach a device or a browser. */
export function apiKey(key: string): Credential {
  return bearer(key);
}

/** A short-lived token that may only read: what a browser should be given. */
export function readToken(token: string): Credential {
  return bearer(token);
}

/** Any other token that is sent as `Authorization: Bearer`, such as a bootstrap token or an access token. */
export function bearer(token: string): Credential {
  // RFC 6750 section 2.1; refusing anything else here keeps line breaks out of headers.
  if (!/^[A-Za-z0-9\-._~+/]+=*$/.test(token)) throw new TypeError("a credential has the form of a bearer token");
  const value = `Bearer ${token}`;
  return {
    async authorization() {
      return value;
    },
  };
}

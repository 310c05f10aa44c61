import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { type Claims, PublicProtocol } from "paseto";
import { type PublicKey, PublicKeyFromCryptoKey, SecretKeyFromCryptoKey, SignFactory } from "paseto/v4/public";
import { licenseAssertion } from "../edge-license.ts";
import { newId } from "../ids.ts";
import { defaultTrustDomain } from "../tls.ts";

/** A key that signs licences in a test. */
export interface TestLicenseSigner {
  readonly keyId: string;
  readonly publicKey: PublicKey;
  /** The 32 bytes of the public key. */
  readonly raw: Uint8Array<ArrayBuffer>;
  /** Signs a licence; by default one that is good for an hour. Claims that are undefined are left out. */
  sign(change?: {
    claims?: Readonly<Record<string, unknown>>;
    prefix?: string;
    footer?: string;
    assertion?: string;
    now?: number;
  }): Promise<string>;
}

const { Sign } = new PublicProtocol(SignFactory);

/** Makes a signer. */
export async function createLicenseSigner(keyId = "key-1"): Promise<TestLicenseSigner> {
  const keys = generateKeyPairSync("ed25519");
  const publicJwk = keys.publicKey.export({ format: "jwk" });
  const secretKey = await SecretKeyFromCryptoKey(await importJwk(keys.privateKey, ["sign"]));
  return {
    keyId,
    publicKey: await PublicKeyFromCryptoKey(await importJwk(keys.publicKey, ["verify"])),
    raw: new Uint8Array(Buffer.from(publicJwk.x ?? "", "base64url")),
    async sign({ claims = {}, prefix, footer, assertion = licenseAssertion, now = Date.now() } = {}) {
      const all: Record<string, unknown> = {
        iss: defaultTrustDomain,
        sub: newId("lic"),
        org: newId("org"),
        product: "browser",
        env: "live",
        mtls: "require",
        iat: new Date(now).toISOString(),
        exp: new Date(now + 3_600_000).toISOString(),
        ...claims,
      };
      const given = Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined)) as Claims;
      const token = await Sign(secretKey, given, {
        footer: Buffer.from(footer ?? JSON.stringify({ kid: keyId })),
        implicitAssertion: Buffer.from(assertion),
        addIssuedAt: false,
        ...("exp" in given ? {} : { nonExpiring: true }),
      });
      return `${prefix ?? `octet_${String(all.env)}_`}${token}`;
    },
  };
}

function importJwk(key: KeyObject, usages: KeyUsage[]): Promise<CryptoKey> {
  return crypto.subtle.importKey("jwk", key.export({ format: "jwk" }), "Ed25519", true, usages);
}

import { generateKeyPairSync, type KeyObject } from "node:crypto";
import * as x509 from "@octomesh/mesh/x509";

/** A signing request of a test, and the private key behind it. */
export interface TestSigningRequest {
  readonly pem: string;
  readonly privateKey: KeyObject;
}

/** What a test may ask for. */
export interface SigningRequestOptions {
  /** The key's algorithm: as WebCrypto names it. P-256 by default. */
  readonly algorithm?: "P-256" | "P-384" | "P-521" | "Ed25519" | { readonly rsaBits: number };
  /** The subject. One that names an edge by default. */
  readonly name?: string;
  readonly extensions?: readonly x509.Extension[];
}

/** Makes a signing request as an edge would. */
export async function createSigningRequest(options: SigningRequestOptions = {}): Promise<TestSigningRequest> {
  const { algorithm = "P-256", name = "CN=edge", extensions = [] } = options;
  x509.cryptoProvider.set(globalThis.crypto);
  const { privateKey, publicKey } = makeKeys(algorithm);
  const signingAlgorithm =
    typeof algorithm === "object"
      ? { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" }
      : algorithm === "Ed25519"
        ? { name: "Ed25519" }
        : { name: "ECDSA", namedCurve: algorithm, hash: "SHA-256" };
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name,
    keys: {
      privateKey: await crypto.subtle.importKey("pkcs8", der(privateKey, "pkcs8"), signingAlgorithm, true, ["sign"]),
      publicKey: await crypto.subtle.importKey("spki", der(publicKey, "spki"), signingAlgorithm, true, ["verify"]),
    },
    signingAlgorithm,
    extensions: [...extensions],
  });
  return { pem: request.toString("pem"), privateKey };
}

function makeKeys(algorithm: NonNullable<SigningRequestOptions["algorithm"]>): {
  privateKey: KeyObject;
  publicKey: KeyObject;
} {
  if (typeof algorithm === "object") return generateKeyPairSync("rsa", { modulusLength: algorithm.rsaBits });
  return algorithm === "Ed25519"
    ? generateKeyPairSync("ed25519")
    : generateKeyPairSync("ec", { namedCurve: algorithm });
}

function der(key: KeyObject, type: "pkcs8" | "spki"): Uint8Array<ArrayBuffer> {
  return new Uint8Array(key.export({ format: "der", type: type as "pkcs8" }));
}

import { createPrivateKey, X509Certificate } from "node:crypto";

/** A new key, and the request by which a certificate authority certifies it. */
export interface SigningRequest {
  /** The request, PKCS #10 in PEM. */
  csrPem: string;
  /** The private key, PKCS #8 in PEM. A secret. */
  keyPem: string;
}

const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;

/**
 * Makes an ECDSA P-256 key and a certification request for it (RFC 2986), signed by it with SHA-256. The request names
 * nobody: whoever certifies the key decides on the names.
 */
export async function createSigningRequest(): Promise<SigningRequest> {
  // Loaded when it is needed, and in the order that it demands: other commands shall not wait for it.
  await import("reflect-metadata");
  const { Pkcs10CertificateRequestGenerator, PemConverter, cryptoProvider } = await import("@peculiar/x509");
  cryptoProvider.set(globalThis.crypto);
  const keys = await crypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const request = await Pkcs10CertificateRequestGenerator.create({ keys, signingAlgorithm: algorithm });
  return {
    csrPem: `${request.toString("pem")}\n`,
    keyPem: `${PemConverter.encode(await crypto.subtle.exportKey("pkcs8", keys.privateKey), "PRIVATE KEY")}\n`,
  };
}

/** Whether the first certificate of a chain, PEM, certifies this private key; false also for what is no certificate. */
export function certifies(certificatePem: string, keyPem: string): boolean {
  try {
    return new X509Certificate(certificatePem).checkPrivateKey(createPrivateKey(keyPem));
  } catch {
    return false;
  }
}

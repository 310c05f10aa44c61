import { createPrivateKey, generateKeyPairSync, sign, X509Certificate } from "node:crypto";

/** A new key, and the request by which a certificate authority certifies it. */
export interface SigningRequest {
  /** The request, PKCS #10 in PEM. */
  csrPem: string;
  /** The private key, PKCS #8 in PEM. A secret. */
  keyPem: string;
}

const tag = { integer: 0x02, bitString: 0x03, objectIdentifier: 0x06, sequence: 0x30, attributes: 0xa0 } as const;
/** 1.2.840.10045.4.3.2, ecdsa-with-SHA256 (RFC 5758). */
const ecdsaWithSha256 = Buffer.from("2a8648ce3d040302", "hex");

/**
 * Makes an ECDSA P-256 key and a certification request for it (RFC 2986), signed by it with SHA-256. The request names
 * nobody: whoever certifies the key decides on the names.
 */
export function createSigningRequest(): SigningRequest {
  const pair = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const info = der(
    tag.sequence,
    der(tag.integer, Buffer.from([0])),
    der(tag.sequence),
    pair.publicKey.export({ format: "der", type: "spki" }),
    der(tag.attributes),
  );
  const signature = sign("sha256", info, { key: pair.privateKey, dsaEncoding: "der" });
  const request = der(
    tag.sequence,
    info,
    der(tag.sequence, der(tag.objectIdentifier, ecdsaWithSha256)),
    der(tag.bitString, Buffer.from([0]), signature),
  );
  const lines = request.toString("base64").replace(/.{64}(?!$)/g, "$&\n");
  return {
    csrPem: `-----BEGIN CERTIFICATE REQUEST-----\n${lines}\n-----END CERTIFICATE REQUEST-----\n`,
    keyPem: pair.privateKey.export({ format: "pem", type: "pkcs8" }).toString(),
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

/** One value in the distinguished encoding rules (X.690): its tag, its length, and what it holds. */
function der(type: number, ...content: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(content);
  const { length } = body;
  if (length < 0x80) return Buffer.concat([Buffer.from([type, length]), body]);
  const digits = Buffer.from(length.toString(16).padStart(length > 0xff ? 4 : 2, "0"), "hex");
  return Buffer.concat([Buffer.from([type, 0x80 | digits.length]), digits, body]);
}

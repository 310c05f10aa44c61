import { createPrivateKey, createPublicKey, type KeyObject, sign } from "node:crypto";

/** What a signature is for; the text goes in front of the signed bytes, so that neither passes for the other. */
export type SignaturePurpose = "octomesh edge signals v1" | "octomesh landmark measurement v1";

/** Signs what an edge measured. */
export interface Signer {
  /** `esk_…`, the key's id. */
  readonly keyId: string;
  /** The public half, base64 of its 32 bytes. */
  readonly publicKey: string;
  /** Ed25519 over the purpose, a zero byte, and the bytes: 64 bytes. */
  sign(purpose: SignaturePurpose, bytes: Uint8Array): Uint8Array;
}

/** PKCS #8 of an Ed25519 key without its seed (RFC 8410). */
const pkcs8Prefix = Buffer.from("302e020100300506032b657004220420", "hex");

/** Opens a signer from the 32-byte seed of an Ed25519 key. Throws a RangeError for another length. */
export function createSigner(keyId: string, seed: Uint8Array): Signer {
  if (seed.length !== 32) throw new RangeError("the seed of an Ed25519 key has 32 bytes");
  const key: KeyObject = createPrivateKey({ key: Buffer.concat([pkcs8Prefix, seed]), format: "der", type: "pkcs8" });
  const spki = createPublicKey(key).export({ format: "der", type: "spki" });
  return {
    keyId,
    publicKey: spki.subarray(-32).toString("base64"),
    sign: (purpose, bytes) => sign(null, Buffer.concat([Buffer.from(`${purpose}\0`), bytes]), key),
  };
}

/** Reads a seed: base64 of 32 bytes, as `openssl rand -base64 32` writes it. Undefined for anything else. */
export function parseSigningKey(text: string): Uint8Array | undefined {
  if (!/^[A-Za-z0-9+/]{43}=$/.test(text)) return undefined;
  const seed = Buffer.from(text, "base64");
  return seed.length === 32 && seed.toString("base64") === text ? seed : undefined;
}

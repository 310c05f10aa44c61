import { createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import { usageError } from "./command-error.ts";

/** The key with which an edge signs what it reports. */
export interface EdgeKeyPair {
  /** The Ed25519 seed as the edge reads it in `EDGE_SIGNING_KEY`: base64 of its 32 bytes. A secret. */
  seed: string;
  /** The public key, 32 bytes. */
  publicKey: Uint8Array;
}

const keyBytes = 32;
/** SubjectPublicKeyInfo of an Ed25519 key without the key itself (RFC 8410). */
const spkiPrefix = Buffer.from("302a300506032b6570032100", "hex");

/** Makes an Ed25519 key. */
export function createEdgeKeyPair(): EdgeKeyPair {
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  const seed = privateKey.export({ format: "der", type: "pkcs8" }).subarray(-keyBytes).toString("base64");
  return { seed, publicKey: bytesOf(publicKey) };
}

/**
 * Reads an Ed25519 public key and returns its 32 bytes: PEM, as `openssl pkey -pubout` writes it, or base64 of the 32
 * bytes, as the edge says it when it starts. Throws a usage error for anything else, a private key among it.
 */
export function readEdgePublicKey(text: string): Uint8Array {
  const trimmed = text.trim();
  const refuse = (what: string) =>
    usageError(what, "Give PEM (openssl pkey -pubout), or base64 of the 32 bytes, as the edge says it when it starts.");
  if (/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(trimmed)) {
    throw refuse("this is a private key: nothing but its public half is registered");
  }
  try {
    const key = trimmed.startsWith("-----BEGIN PUBLIC KEY-----")
      ? createPublicKey(trimmed)
      : createPublicKey({ key: Buffer.concat([spkiPrefix, parseBase64(trimmed)]), format: "der", type: "spki" });
    if (key.asymmetricKeyType === "ed25519") return bytesOf(key);
  } catch {
    // Told below, the same for all that is none.
  }
  throw refuse("this is no Ed25519 public key");
}

function parseBase64(text: string): Buffer {
  const bytes = Buffer.from(text, "base64");
  if (bytes.length !== keyBytes || bytes.toString("base64") !== text) throw new TypeError("not 32 bytes in base64");
  return bytes;
}

function bytesOf(key: KeyObject): Uint8Array {
  return new Uint8Array(key.export({ format: "der", type: "spki" }).subarray(-keyBytes));
}

import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type ArtifactFormat, ManifestSchema } from "@octomesh/proto/octomesh/model/v1/manifest_pb";

/** What a manifest says. */
export interface ManifestContent {
  readonly orgId: string;
  readonly modelId: string;
  readonly modelName: string;
  readonly version: string;
  readonly versionId: string;
  readonly artifactId: string;
  /** 32 bytes. */
  readonly sha256: Uint8Array;
  readonly sizeBytes: number;
  readonly format: ArtifactFormat;
  readonly createTimeMs: number;
}

/** What is signed begins with this and a zero byte, so that no signature over something else passes for one of these. */
const signatureContext = Buffer.from("octomesh-manifest-v1\0", "ascii");

/**
 * Serialises a manifest. The bytes are what is signed, stored and sent: nobody serialises it a second time, though
 * doing so gives the same bytes (fields in order of number, no maps).
 */
export function encodeManifest(content: ManifestContent): Uint8Array {
  const { createTimeMs, sizeBytes, sha256, ...rest } = content;
  return toBinary(
    ManifestSchema,
    create(ManifestSchema, {
      ...rest,
      sha256: Uint8Array.from(sha256),
      sizeBytes: BigInt(sizeBytes),
      createTime: timestampFromMs(createTimeMs),
    }),
  );
}

/** Signs a serialised manifest: Ed25519 (RFC 8032), 64 bytes, over `octomesh-manifest-v1`, a zero byte and the bytes. */
export function signManifest(manifest: Uint8Array, privateKey: KeyObject): Buffer {
  return sign(null, Buffer.concat([signatureContext, manifest]), privateKey);
}

/** Whether a signature is the one of this key over this manifest. `publicKey` is the raw 32 bytes. */
export function verifyManifest(manifest: Uint8Array, signature: Uint8Array, publicKey: Uint8Array): boolean {
  if (signature.length !== 64 || publicKey.length !== 32) return false;
  const key = createPublicKey({
    key: { kty: "OKP", crv: "Ed25519", x: Buffer.from(publicKey).toString("base64url") },
    format: "jwk",
  });
  return verify(null, Buffer.concat([signatureContext, manifest]), key, signature);
}

/** A new Ed25519 pair: the raw public key (32 bytes) and the private one in PKCS #8 (to be sealed at once). */
export function newManifestKeyPair(): { publicKey: Buffer; privateKeyPkcs8: Buffer } {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const { x } = publicKey.export({ format: "jwk" });
  if (x === undefined) throw new Error("an Ed25519 public key has no x");
  return {
    publicKey: Buffer.from(x, "base64url"),
    privateKeyPkcs8: privateKey.export({ format: "der", type: "pkcs8" }),
  };
}

/** Reads a private key as `newManifestKeyPair` wrote it. */
export function readManifestKey(privateKeyPkcs8: Buffer): KeyObject {
  return createPrivateKey({ key: privateKeyPkcs8, format: "der", type: "pkcs8" });
}

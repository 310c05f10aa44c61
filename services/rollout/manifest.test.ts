import { randomBytes } from "node:crypto";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { createMasterKey } from "@octomesh/mesh/master-key";
import { ArtifactFormat, ManifestSchema } from "@octomesh/proto/octomesh/model/v1/manifest_pb";
import { describe, expect, it } from "vitest";
import { encodeManifest, newManifestKeyPair, readManifestKey, signManifest, verifyManifest } from "./manifest.ts";
import { openManifestKey } from "./manifest-keys.ts";

const content = {
  orgId: "org_a",
  modelId: "mdl_a",
  modelName: "vad",
  version: "1.0.0",
  versionId: "mvr_a",
  artifactId: "art_a",
  sha256: randomBytes(32),
  sizeBytes: 2_000_000,
  format: ArtifactFormat.ONNX,
  createTimeMs: 1_790_000_000_123,
};

describe("a manifest", () => {
  it("has the same bytes each time it is serialised, and after being read", () => {
    const bytes = encodeManifest(content);
    expect(encodeManifest(content)).toEqual(bytes);
    expect(toBinary(ManifestSchema, fromBinary(ManifestSchema, bytes))).toEqual(bytes);
  });

  it("verifies under the key that signed it and under no other, and not once a bit was changed", () => {
    const pair = newManifestKeyPair();
    const bytes = encodeManifest(content);
    const signature = signManifest(bytes, readManifestKey(pair.privateKeyPkcs8));
    expect(signature.length).toBe(64);
    expect(verifyManifest(bytes, signature, pair.publicKey)).toBe(true);
    expect(verifyManifest(bytes, signature, newManifestKeyPair().publicKey)).toBe(false);
    for (let at = 0; at < bytes.length; at++) {
      const changed = Uint8Array.from(bytes);
      changed[at] = (changed[at] ?? 0) ^ 1;
      expect(verifyManifest(changed, signature, pair.publicKey)).toBe(false);
    }
    expect(verifyManifest(bytes, signature.subarray(1), pair.publicKey)).toBe(false);
  });

  it("is signed with a key that opens only where it belongs", () => {
    const masterKey = createMasterKey([randomBytes(32)]);
    const { publicKey, privateKeyPkcs8 } = newManifestKeyPair();
    const row = {
      org_id: "org_a",
      id: "mky_a",
      public_key: publicKey,
      sealed_private_key: masterKey.seal(privateKeyPkcs8, "rollout/manifest-keys/org_a/mky_a"),
      create_time: new Date(),
      retire_time: null,
    };
    const bytes = encodeManifest(content);
    expect(verifyManifest(bytes, signManifest(bytes, openManifestKey(masterKey, row)), publicKey)).toBe(true);
    expect(() => openManifestKey(masterKey, { ...row, org_id: "org_b" })).toThrow(/belongs to another place/);
    expect(() => openManifestKey(createMasterKey([randomBytes(32)]), row)).toThrow();
  });
});

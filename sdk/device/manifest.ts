import { fromBinary } from "@bufbuild/protobuf";
import type { DesiredState_DesiredModel } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import { type Manifest, ManifestSchema } from "@octomesh/proto/octomesh/model/v1/manifest_pb";
import type { Platform } from "../platform/platform.ts";
import { fromBase64, toHex } from "./bytes.ts";
import { DeviceError } from "./device-error.ts";
import type { DeviceRegistrationRecord } from "./device-store.ts";

const prefix = new TextEncoder().encode("octomesh-manifest-v1\0");

/** A manifest whose signature is right and that is for what it was offered for. */
export interface VerifiedManifest {
  /** What was signed. */
  manifest: Manifest;
  /** SHA-256 of the artifact, 64 lower-case hexadecimal digits. */
  sha256: string;
  /** Size of the artifact in bytes. */
  sizeBytes: number;
}

/** What an Ed25519 signature of a manifest covers: `octomesh-manifest-v1`, a zero byte, and the manifest's bytes. */
export function signedManifestBytes(manifest: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(prefix.length + manifest.length);
  bytes.set(prefix);
  bytes.set(manifest, prefix.length);
  return bytes;
}

/**
 * Verifies what the mesh says a device is to run, by the keys that were pinned at registration. Throws a DeviceError:
 * MANIFEST_KEY_UNKNOWN, MANIFEST_SIGNATURE, or MANIFEST_MISMATCH for a signed manifest that is not this organisation's,
 * this model's and this version's (an old or foreign manifest that is offered again).
 */
export async function verifyManifest(
  desired: DesiredState_DesiredModel,
  registration: Pick<DeviceRegistrationRecord, "orgId" | "manifestKeys">,
  platform: Pick<Platform<unknown>, "verifyEd25519">,
): Promise<VerifiedManifest> {
  const key = registration.manifestKeys.find((candidate) => candidate.id === desired.keyId);
  if (key === undefined) {
    throw new DeviceError("MANIFEST_KEY_UNKNOWN", `manifest key ${desired.keyId} was not given at registration`);
  }
  const isSigned = await platform.verifyEd25519(
    fromBase64(key.publicKey),
    signedManifestBytes(desired.manifest),
    desired.signature,
  );
  if (!isSigned) {
    throw new DeviceError(
      "MANIFEST_SIGNATURE",
      `the manifest of ${desired.modelName} ${desired.version} is not signed by key ${desired.keyId}`,
    );
  }
  let manifest: Manifest;
  try {
    manifest = fromBinary(ManifestSchema, desired.manifest);
  } catch (cause) {
    throw new DeviceError("MANIFEST_MISMATCH", "what is signed is not a manifest", { cause });
  }
  const differing = (
    [
      ["org_id", manifest.orgId, registration.orgId],
      ["model_id", manifest.modelId, desired.modelId],
      ["version_id", manifest.versionId, desired.versionId],
      ["version", manifest.version, desired.version],
      ["model_name", manifest.modelName, desired.modelName],
    ] as const
  ).find(([, signed, offered]) => signed !== offered);
  if (differing !== undefined) {
    const [field, signed, offered] = differing;
    throw new DeviceError("MANIFEST_MISMATCH", `the manifest's ${field} is ${signed}, offered as ${offered}`);
  }
  if (
    manifest.sha256.length !== 32 ||
    manifest.sizeBytes < 1n ||
    manifest.sizeBytes > BigInt(Number.MAX_SAFE_INTEGER)
  ) {
    throw new DeviceError("MANIFEST_MISMATCH", "the manifest describes no artifact");
  }
  return { manifest, sha256: toHex(manifest.sha256), sizeBytes: Number(manifest.sizeBytes) };
}

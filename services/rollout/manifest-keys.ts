import type { KeyObject } from "node:crypto";
import { newId } from "@octomesh/mesh/ids";
import type { MasterKey } from "@octomesh/mesh/master-key";
import { newManifestKeyPair, readManifestKey } from "./manifest.ts";
import { currentManifestKey, insertManifestKey, type ManifestKeyRow } from "./store/manifest-keys.ts";
import type { Tx } from "./store/tables.ts";

/**
 * The key that signs an organisation's manifests, made on first use. Two first uses at once end with the same key.
 *
 * @param tx a transaction that may write this organisation's rows
 */
export async function ensureManifestKey(
  tx: Tx,
  masterKey: MasterKey,
  orgId: string,
  nowMs: number,
): Promise<ManifestKeyRow> {
  const known = await currentManifestKey(tx, orgId);
  if (known !== undefined) return known;
  const id = newId("mky", nowMs);
  const { publicKey, privateKeyPkcs8 } = newManifestKeyPair();
  try {
    await insertManifestKey(tx, {
      org_id: orgId,
      id,
      public_key: publicKey,
      sealed_private_key: masterKey.seal(privateKeyPkcs8, placeOf(orgId, id)),
      create_time: new Date(nowMs),
    });
  } finally {
    privateKeyPkcs8.fill(0);
  }
  const made = await currentManifestKey(tx, orgId);
  if (made === undefined) throw new Error("the manifest key that was just made is not there");
  return made;
}

/** Opens the private half of a manifest key. Throws where the row was changed or belongs to another organisation. */
export function openManifestKey(masterKey: MasterKey, row: ManifestKeyRow): KeyObject {
  const privateKey = masterKey.open(row.sealed_private_key, placeOf(row.org_id, row.id));
  try {
    return readManifestKey(privateKey);
  } finally {
    privateKey.fill(0);
  }
}

/** Where a sealed key belongs: it opens nowhere else. */
function placeOf(orgId: string, id: string): string {
  return `rollout/manifest-keys/${orgId}/${id}`;
}

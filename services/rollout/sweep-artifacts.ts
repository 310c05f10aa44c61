import { fenceLease, type Lease } from "@octomesh/mesh/lease";
import type { Dependencies } from "./dependencies.ts";
import {
  deleteLapsedUploads,
  deleteUnusedArtifacts,
  listBlobGarbage,
  lockBlob,
  takeBlobGarbage,
} from "./store/artifacts.ts";

/** How long an artifact that no version refers to is kept after somebody last asked for it: 7 days. */
export const unusedArtifactLifetimeMs = 7 * 24 * 60 * 60_000;

const batch = 100;

/** What a sweep removed. */
export interface Sweep {
  readonly uploads: number;
  readonly artifacts: number;
  readonly blobs: number;
}

/**
 * Removes uploads that have lapsed and artifacts that nothing refers to, with their bytes. An interrupted sweep leaves
 * nothing that the next does not find, and no bytes that a row still speaks of are removed.
 *
 * @param lease only its holder does this
 */
export async function sweepArtifacts(
  { database, blobs, digests, clock }: Pick<Dependencies, "database" | "blobs" | "digests" | "clock">,
  lease: Lease,
): Promise<Sweep> {
  const nowMs = clock.now();
  const now = new Date(nowMs);
  let uploads = 0;
  for (;;) {
    const lapsed = await database.system(async (tx) => {
      if (!(await fenceLease(tx, lease))) return [];
      const rows = await deleteLapsedUploads(tx, now, batch);
      // Before the commit, so that an interruption leaves the row and the next sweep comes back to the bytes.
      for (const { orgId, uploadId, hasBytes } of rows) if (hasBytes) await blobs.discard({ orgId, uploadId });
      return rows;
    });
    for (const { uploadId } of lapsed) digests.drop(uploadId);
    uploads += lapsed.length;
    if (lapsed.length < batch) break;
  }

  const before = new Date(nowMs - unusedArtifactLifetimeMs);
  const artifacts = await database.system(async (tx) =>
    (await fenceLease(tx, lease)) ? await deleteUnusedArtifacts(tx, before, now, batch) : 0,
  );

  let removed = 0;
  const garbage = await database.system((tx) => listBlobGarbage(tx, batch));
  for (const { orgId, sha256 } of garbage) {
    removed += await database.system(async (tx) => {
      if (!(await fenceLease(tx, lease))) return 0;
      await lockBlob(tx, orgId, sha256);
      if (!(await takeBlobGarbage(tx, orgId, sha256))) return 0;
      await blobs.remove({ orgId, sha256: sha256.toString("hex") });
      return 1;
    });
  }
  return { uploads, artifacts, blobs: removed };
}

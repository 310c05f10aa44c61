import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import type { Dependencies } from "./dependencies.ts";
import { eraseOrganization } from "./erase-organization.ts";
import { listDeleted } from "./store/organizations.ts";
import { deleteExpired, type ExpiringTable } from "./store/retention.ts";
import { deleteForgotten, deleteGoneSubscribers } from "./store/revocations.ts";

/** How long rows are kept after they expired, milliseconds: for those who look into what happened. */
const keptMs: Record<ExpiringTable, number> = {
  sessions: 30 * 86_400_000,
  device_credentials: 30 * 86_400_000,
  read_tokens: 86_400_000,
  edge_certificates: 30 * 86_400_000,
};

/** Deletes what expired long ago. */
export async function keepHouse(deps: Dependencies): Promise<void> {
  const { database } = deps;
  const now = deps.clock.now();
  await database.system((tx) => deleteForgotten(tx, new Date(now)));
  await database.system(deleteGoneSubscribers);
  for (const [table, kept] of Object.entries(keptMs) as [ExpiringTable, number][]) {
    let deleted: number;
    do {
      deleted = await database.system((tx) => deleteExpired(tx, table, new Date(now - kept)));
    } while (deleted > 0);
  }
}

/** Goes on with deletions of organisations that a failure stopped half-way. */
export async function resumeErasures(deps: Dependencies): Promise<void> {
  const rows = await deps.database.system((tx) => listDeleted(tx, Environment.LIVE));
  for (const row of rows) {
    try {
      await eraseOrganization(deps, { orgId: row.org_id, pairedId: row.paired_id });
      deps.log.info({ org_id: row.org_id }, "an organisation is erased");
    } catch (error) {
      deps.log.warn({ err: error, org_id: row.org_id }, "an organisation is not erased yet");
    }
  }
}

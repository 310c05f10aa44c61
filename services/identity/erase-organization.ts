import { fail, Reason } from "@octomesh/mesh/errors";
import { serviceNames } from "@octomesh/mesh/service-name";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import type { Dependencies, Erased } from "./dependencies.ts";
import {
  addErasure,
  countRows,
  deleteErasures,
  type ErasureRow,
  eraseAuditOutbox,
  eraseRows,
  listErasures,
} from "./store/erasure.ts";

/** Action of the one audit event that outlives its organisation. */
export const deletionAction = "organization.delete";

/**
 * Erases an organisation whose deletion has begun, and its sandbox: at every sibling, and when all have nothing left,
 * here. What was erased is noted as it happens, so that a repetition goes on where a failure stopped it and still
 * proves the whole. Throws DEPENDENCY_UNAVAILABLE where a service could not be reached or still holds something.
 */
export async function eraseOrganization(
  deps: Dependencies,
  org: { orgId: string; pairedId: string },
): Promise<readonly ErasureRow[]> {
  const { database, log } = deps;
  const orgIds = [org.pairedId, org.orgId];
  const siblings = serviceNames.filter((service) => service !== "identity");
  const failed = (
    await Promise.all(
      siblings.map(async (service) => {
        try {
          let remaining = 0;
          for (const orgId of orgIds) {
            const answer = await deps.eraseAt(service, orgId);
            remaining += answer.remaining;
            await database.ingest([org.orgId], (tx) =>
              addErasure(tx, org.orgId, { service, erased: answer.erased, remaining }),
            );
          }
          return remaining === 0 ? undefined : service;
        } catch (error) {
          log.warn({ err: error, service, org_id: org.orgId }, "an organisation could not be erased");
          return service;
        }
      }),
    )
  ).filter((service) => service !== undefined);
  if (failed.length > 0) {
    throw fail(
      Reason.DEPENDENCY_UNAVAILABLE,
      `not everything is erased yet (${failed.join(", ")}): it goes on by itself, and repeating the call waits for it`,
      { services: failed.join(",") },
      { retryAfterMs: 5_000 },
    );
  }
  const sandbox = await eraseHere(deps, org.pairedId);
  await database.ingest([org.orgId], (tx) => addErasure(tx, org.orgId, { service: "identity", ...sandbox }));
  const audit = await database.system((tx) => eraseAuditOutbox(tx, org.orgId, deletionAction));
  // One transaction: while the organisation's row stands, its deletion is resumed and its proof is kept.
  return await database.ingest([org.orgId], async (tx) => {
    const erased = { ...(await eraseRows(tx, org.orgId, Subject.ORGANIZATION)), audit_outbox: audit };
    const remaining = sandbox.remaining + (await countRows(tx, org.orgId, Subject.ORGANIZATION));
    await addErasure(tx, org.orgId, { service: "identity", erased, remaining });
    const proof = await listErasures(tx, org.orgId);
    await deleteErasures(tx, org.orgId);
    return proof;
  });
}

/**
 * Erases what this service holds of an organisation. Two things stay: the revocation of the organisation itself, until
 * the last token that was signed for it has expired, and the audit event of its deletion.
 */
export async function eraseHere(deps: Dependencies, orgId: string): Promise<Erased> {
  const { database } = deps;
  const audit = await database.system((tx) => eraseAuditOutbox(tx, orgId, deletionAction));
  const erased = await database.ingest([orgId], (tx) => eraseRows(tx, orgId, Subject.ORGANIZATION));
  const remaining = await database.ingest([orgId], (tx) => countRows(tx, orgId, Subject.ORGANIZATION));
  return { erased: { ...erased, audit_outbox: audit }, remaining };
}

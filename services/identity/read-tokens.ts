import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import type { Dependencies } from "./dependencies.ts";
import { opaqueCacheMs, revocationSlackMs } from "./lifetimes.ts";
import type { NewRevocation } from "./revocation-log.ts";
import type { IdentityTransaction } from "./schema.ts";
import { revokeReadTokens } from "./store/read-tokens.ts";

/** Revokes one read token, or all that a member or key made, and tells what to record so that services drop them. */
export async function readTokenRevocations(
  deps: Dependencies,
  tx: IdentityTransaction,
  orgId: string,
  which: { id: string } | { creatorId: string },
): Promise<NewRevocation[]> {
  const now = new Date(deps.clock.now());
  const rows = await revokeReadTokens(tx, orgId, which, now, new Date(now.getTime() - revocationSlackMs));
  return rows.map((row) => ({
    subject: Subject.READ_TOKEN,
    orgId,
    id: row.id,
    revokeTime: now,
    forgetTime: new Date(Math.max(row.expire_time.getTime(), now.getTime()) + opaqueCacheMs),
    digest: row.digest,
  }));
}

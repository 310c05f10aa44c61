import type { Call } from "@octomesh/mesh/call";
import { withOrganization } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import type { Dependencies } from "./dependencies.ts";
import { type OrganizationRow, readOrganization } from "./store/organizations.ts";

/** An organisation and its sandbox; of a sandbox itself alone, which does not reach into the live organisation. */
export async function readPair(
  { database }: Pick<Dependencies, "database">,
  orgId: string,
): Promise<readonly OrganizationRow[]> {
  const org = await database.read(orgId, (tx) => readOrganization(tx, orgId));
  if (org.environment !== Environment.LIVE) return [org];
  return [org, await database.read(org.paired_id, (tx) => readOrganization(tx, org.paired_id))];
}

/**
 * The call in the organisation of the environment that a request asks for: the caller's own if it asks for none. Throws
 * VALIDATION_FAILED for a sandbox that asks for the live one.
 */
export async function inEnvironment(
  { database }: Pick<Dependencies, "database">,
  call: Call,
  wanted: Environment,
): Promise<{ call: Call; environment: Environment }> {
  const own = await database.read(call.orgId, (tx) => readOrganization(tx, call.orgId));
  const environment = wanted === Environment.UNSPECIFIED ? own.environment : wanted;
  if (environment === own.environment) return { call, environment };
  if (environment === Environment.LIVE) {
    throw fail(Reason.VALIDATION_FAILED, "a sandbox has no live keys", { field: "environment" });
  }
  return { call: withOrganization(call, own.paired_id), environment };
}

/** The order of lists that are put together from several organisations: newest first, as each list by itself is. */
export function newestFirst<R extends { create_time: Date; id: string }>(a: R, b: R): number {
  const byTime = b.create_time.getTime() - a.create_time.getTime();
  if (byTime !== 0) return byTime;
  return a.id < b.id ? 1 : -1;
}

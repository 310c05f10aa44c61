import type { ServiceImpl } from "@connectrpc/connect";
import { callOf, withOrganization } from "@octomesh/mesh/call-context";
import type { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import type { Dependencies } from "../dependencies.ts";
import { countEvents, countRows, eraseEvents, eraseRows } from "../store/tenant.ts";

/** Erases an organisation's models, artifacts and rollouts, and counts what is left. */
export function tenantRoutes(deps: Dependencies): ServiceImpl<typeof TenantService> {
  const { database, blobs, definitions } = deps;
  return {
    async eraseTenant(request, ctx) {
      const { orgId } = request;
      const call = withOrganization(callOf(ctx), orgId);
      const rows = await database.write(call, (tx) => eraseRows(tx, orgId));
      // Bytes after rows: what is written meanwhile finds no row to belong to.
      const files = await blobs.erase(orgId);
      const events = await database.system((tx) => eraseEvents(tx, orgId));
      definitions.forget(orgId);
      const left = await blobs.count(orgId);
      const remaining =
        (await database.read(orgId, (tx) => countRows(tx, orgId))) +
        (await database.system((tx) => countEvents(tx, orgId))) +
        BigInt(left.blobs + left.uploads);
      return {
        erased: { ...rows, ...events, blobs: BigInt(files.blobs), upload_files: BigInt(files.uploads) },
        remaining,
      };
    },
  };
}

import type { ServiceImpl } from "@connectrpc/connect";
import type { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import type { Dependencies } from "../dependencies.ts";
import { eraseHere } from "../erase-organization.ts";

/** TenantService, for what identity itself holds. */
export function tenantRoutes(deps: Dependencies): ServiceImpl<typeof TenantService> {
  return {
    async eraseTenant(request) {
      const { erased, remaining } = await eraseHere(deps, request.orgId);
      return {
        erased: Object.fromEntries(Object.entries(erased).map(([table, count]) => [table, BigInt(count)])),
        remaining: BigInt(remaining),
      };
    },
  };
}

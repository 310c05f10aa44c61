import type { ServiceImpl } from "@connectrpc/connect";
import type { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import type { Store } from "../store.ts";

/** Erases what this service holds of an organisation, and counts what a search afterwards still finds. */
export function tenantRoutes(store: Store): ServiceImpl<typeof TenantService> {
  return {
    async eraseTenant({ orgId }) {
      const counts = await store.eraseOrganization(orgId);
      const erased = Object.fromEntries(Object.entries(counts).map(([table, count]) => [table, BigInt(count)]));
      return { erased, remaining: BigInt(await store.countOrganization(orgId)) };
    },
  };
}

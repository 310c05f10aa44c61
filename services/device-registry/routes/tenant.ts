import type { ServiceImpl } from "@connectrpc/connect";
import type { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { deviceChange } from "../device-change.ts";
import type { ServiceContext } from "../service-context.ts";

/** Erasure of an organisation: its rows, and what this process remembers of it. */
export function tenantRoutes(context: ServiceContext): ServiceImpl<typeof TenantService> {
  const { store, desiredStates, manifestKeys } = context;
  return {
    async eraseTenant(request) {
      const { erased, remaining } = await store.tenant.erase(request.orgId);
      manifestKeys.forget(request.orgId);
      desiredStates.devicesChanged(request.orgId, deviceChange(undefined));
      return { erased: { ...erased }, remaining };
    },
  };
}

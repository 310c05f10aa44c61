import type { ConnectRouter } from "@connectrpc/connect";
import { notImplemented } from "@octomesh/mesh/not-implemented";
import { EdgeService } from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";

/**
 * Registers what the contract says this service owns, so that policy, limits and refusals are in force; its own methods
 * refuse with NOT_IMPLEMENTED in this release. It holds nothing of any organisation, and so erases nothing.
 */
export function registerRoutes(router: ConnectRouter): void {
  router.service(EdgeService, notImplemented(EdgeService));
  router.service(TenantService, { eraseTenant: () => ({ erased: {}, remaining: 0n }) });
}

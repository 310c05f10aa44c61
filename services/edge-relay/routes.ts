import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ConnectRouter } from "@connectrpc/connect";
import type { Clock } from "@octomesh/mesh/clock";
import { EdgeService } from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { checkKit } from "./check-kit.ts";
import type { Provisioning } from "./provisioning.ts";

/** What the routes need. */
export interface RoutesOptions {
  readonly provisioning: Provisioning;
  readonly clock: Clock;
  readonly trustDomain: string;
}

/** Registers the hand-over of the kit, what is known of it, and its erasure. */
export function registerRoutes(router: ConnectRouter, options: RoutesOptions): void {
  const { provisioning, clock, trustDomain } = options;
  router.service(EdgeService, {
    async provisionEdge(request) {
      await provisioning.provision(checkKit(request, trustDomain, clock.now()));
      return { provisioned: true };
    },
    getEdgeState() {
      const { kit } = provisioning;
      if (kit === undefined) return { provisioned: false };
      const { orgId, licenseKeyId, signingKeyId } = kit;
      const expiresMs = provisioning.expiresMs();
      return {
        provisioned: true,
        orgId,
        licenseKeyId,
        signingKeyId,
        ...(expiresMs === undefined ? {} : { expireTime: timestampFromMs(expiresMs) }),
      };
    },
  });
  router.service(TenantService, {
    async eraseTenant({ orgId }) {
      return { erased: { kits: BigInt(await provisioning.erase(orgId)) }, remaining: 0n };
    },
  });
}

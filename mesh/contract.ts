import type { DescService } from "@bufbuild/protobuf";
import { AuditService } from "@octomesh/proto/octomesh/audit/v1/audit_service_pb";
import { DeviceGroupService } from "@octomesh/proto/octomesh/device/v1/device_group_service_pb";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { EdgeService } from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";
import { ApiKeyService } from "@octomesh/proto/octomesh/identity/v1/api_key_service_pb";
import { BootstrapTokenService } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_service_pb";
import { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { EdgeCredentialService } from "@octomesh/proto/octomesh/identity/v1/edge_credential_service_pb";
import { MemberService } from "@octomesh/proto/octomesh/identity/v1/member_service_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { ReadTokenService } from "@octomesh/proto/octomesh/identity/v1/read_token_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { ArtifactService } from "@octomesh/proto/octomesh/model/v1/artifact_service_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { RolloutService } from "@octomesh/proto/octomesh/rollout/v1/rollout_service_pb";
import { TelemetryService } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { VerdictService } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { ownerOf, policyOf } from "./policy.ts";
import { bindingsOf, type RestBinding } from "./rest.ts";
import type { ServiceName } from "./service-name.ts";

/** Every rpc service of the contract. */
export const contractServices: readonly DescService[] = [
  ApiKeyService,
  ArtifactService,
  AssignmentService,
  AuditService,
  BootstrapTokenService,
  CredentialService,
  DeviceCredentialService,
  DeviceGroupService,
  DeviceService,
  EdgeCredentialService,
  EdgeService,
  MemberService,
  ModelService,
  ModelVersionService,
  OrganizationService,
  ReadTokenService,
  RolloutService,
  SessionService,
  TelemetryService,
  TenantService,
  VerdictService,
];

/** Every rpc service that somebody other than a peer may call. */
export const publicServices: readonly DescService[] = contractServices.filter((service) =>
  service.methods.some((method) => policyOf(method).isPublic),
);

/**
 * Whether a service has methods for edges, which reach it over TLS with their own client certificates and not through
 * the public origin.
 */
export function admitsEdges(service: ServiceName): boolean {
  return contractServices.some(
    (each) => ownerOf(each) === service && each.methods.some((method) => policyOf(method).callers.has("edge")),
  );
}

/** One line of the route table: what of the public surface is whose. */
export interface Route {
  readonly owner: ServiceName;
  /** The rpc service's path, `/octomesh.model.v1.ModelService/`. */
  readonly rpcPrefix: string;
  readonly bindings: readonly RestBinding[];
}

/**
 * The table rpc service and REST path -> service of the mesh, from the descriptors (DESIGN 8.4): for the forwarder of
 * `npm start -- --processes`, for nginx and for the Gateway API. Services without a public method are not in it.
 */
export function routeTable(): readonly Route[] {
  return publicServices.flatMap((service) => {
    const owner = ownerOf(service);
    if (owner === undefined) return [];
    const open = service.methods.filter((method) => policyOf(method).isPublic);
    return [{ owner, rpcPrefix: `/${service.typeName}/`, bindings: open.flatMap(bindingsOf) }];
  });
}

import { type Client, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { AuditService } from "@octomesh/proto/octomesh/audit/v1/audit_service_pb";
import { DeviceGroupService } from "@octomesh/proto/octomesh/device/v1/device_group_service_pb";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { ApiKeyService } from "@octomesh/proto/octomesh/identity/v1/api_key_service_pb";
import { BootstrapTokenService } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_service_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { EdgeCredentialService } from "@octomesh/proto/octomesh/identity/v1/edge_credential_service_pb";
import { MemberService } from "@octomesh/proto/octomesh/identity/v1/member_service_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { ReadTokenService } from "@octomesh/proto/octomesh/identity/v1/read_token_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { ArtifactService } from "@octomesh/proto/octomesh/model/v1/artifact_service_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { RolloutService } from "@octomesh/proto/octomesh/rollout/v1/rollout_service_pb";
import { TelemetryService } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { VerdictService } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import type { Credential } from "./credential.ts";
import type { Platform, ProtocolOptions } from "./platform/platform.ts";
import { type ResilienceOptions, resilientTransport } from "./resilient-transport.ts";

/** The rpc services of the public surface, by the name that their client has in `Clients`. */
export const publicServices = {
  organizations: OrganizationService,
  members: MemberService,
  sessions: SessionService,
  apiKeys: ApiKeyService,
  bootstrapTokens: BootstrapTokenService,
  deviceCredentials: DeviceCredentialService,
  readTokens: ReadTokenService,
  edgeCredentials: EdgeCredentialService,
  audit: AuditService,
  devices: DeviceService,
  deviceGroups: DeviceGroupService,
  models: ModelService,
  modelVersions: ModelVersionService,
  artifacts: ArtifactService,
  rollouts: RolloutService,
  telemetry: TelemetryService,
  verdicts: VerdictService,
} as const;

/**
 * Methods that a client cannot call: only services of the mesh may (they are not on the public origin), only an edge by
 * its certificate, or they are plain HTTP. The contract's policy options say which; a test keeps this list equal to them.
 */
export const withheldMethods = {
  deviceCredentials: ["issueDeviceCredential", "revokeDeviceCredentials"],
  audit: ["ingestAuditEvents"],
  modelVersions: ["listManifestKeys"],
  artifacts: ["appendArtifactUpload", "downloadArtifact"],
  verdicts: ["submitSignals"],
} as const satisfies Partial<Record<keyof typeof publicServices, readonly string[]>>;

type Withheld<Name> = Name extends keyof typeof withheldMethods ? (typeof withheldMethods)[Name][number] : never;

/** A typed client for every rpc service of the public surface. */
export type ServiceClients = {
  readonly [Name in keyof typeof publicServices]: Omit<Client<(typeof publicServices)[Name]>, Withheld<Name>>;
};

/** The clients, and the connection that they share. */
export type Clients = ServiceClients & {
  /**
   * The value of the `Authorization` header that a call made now would carry, renewed if it is due; undefined without a
   * credential. For the parts of the API that are plain HTTP. A secret.
   */
  authorization(): Promise<string | undefined>;
  /** Drops the connection and ends the calls that are under way. A transport that was passed in stays open. */
  close(): void;
};

/** Settings of `createClients` that are the same everywhere. */
export interface ClientsOptions extends ProtocolOptions, Omit<ResilienceOptions, "ended"> {
  /** The public origin of the mesh, such as `http://localhost:8080`. */
  baseUrl: string;
  /** What calls prove themselves with. Without it only public methods answer. */
  credential?: Credential;
  /** Carries the calls in place of a connection to `baseUrl`: any Connect transport. */
  transport?: Transport;
}

/** Makes the clients on a platform. `createClients` of the package's entry points has the platform filled in. */
export function createClientsOn<Options>(platform: Platform<Options>, options: ClientsOptions & Options): Clients {
  const connection = options.transport
    ? { transport: options.transport, close: () => {} }
    : platform.connect(originOf(options.baseUrl), options);
  const ended = platform.abortController();
  const settings = { ...options, ended: ended.signal };
  const transport = resilientTransport(connection.transport, settings);
  const bare = resilientTransport(connection.transport, { ...settings, credential: undefined });
  const clients: Record<string, unknown> = {};
  for (const [name, service] of Object.entries(publicServices)) {
    const client: Record<string, unknown> = createClient(service, transport);
    const withheld: readonly string[] = (withheldMethods as Record<string, readonly string[]>)[name] ?? [];
    clients[name] = Object.fromEntries(Object.entries(client).filter(([method]) => !withheld.includes(method)));
  }
  return Object.assign(clients as unknown as ServiceClients, {
    authorization: async () => options.credential?.authorization(bare),
    close() {
      ended.abort(new ConnectError("the client is closed", Code.Canceled));
      connection.close();
    },
  });
}

/** Checks a base URL and takes a slash off its end. Throws a TypeError that says what is expected. */
export function originOf(baseUrl: string): string {
  const url = URL.canParse(baseUrl) ? new URL(baseUrl) : undefined;
  if (url === undefined || (url.protocol !== "http:" && url.protocol !== "https:")) {
    throw new TypeError("baseUrl is an http or https URL, such as http://localhost:8080");
  }
  if (url.username !== "" || url.password !== "" || url.search !== "" || url.hash !== "") {
    throw new TypeError("baseUrl holds no user name, password, query or fragment");
  }
  return url.href.replace(/\/+$/, "");
}

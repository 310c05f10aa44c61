import type { Client } from "@connectrpc/connect";
import type { Call } from "@octomesh/mesh/call";
import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import type { Outbox } from "@octomesh/mesh/outbox";
import { createPager, type Pager } from "@octomesh/mesh/paging";
import type { Runtime } from "@octomesh/mesh/service";
import type { ServiceName } from "@octomesh/mesh/service-name";
import { EdgeService } from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import type { Logger } from "pino";
import { type Bell, createBell } from "./bell.ts";
import { type EdgeIssuer, openEdgeIssuer } from "./edge-issuer.ts";
import { type KeyRing, openKeyRing } from "./key-ring.ts";
import { openRevocationLog, type RevocationLog } from "./revocation-log.ts";
import type { IdentitySchema } from "./schema.ts";

/** What the service's parts need, in one plain object. */
export interface Dependencies {
  readonly database: Database<IdentitySchema>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly keyRing: KeyRing;
  readonly revocations: RevocationLog;
  readonly pager: Pager;
  /** Signs licences and edges' client certificates. */
  readonly edgeIssuer: EdgeIssuer;
  /** Rings when the deployment's own edge may want a kit. */
  readonly edgeBell: Bell;
  /** The deployment's own edge. */
  edge(): Client<typeof EdgeService>;
  /** A call of background work, audited by its action. */
  systemCall(orgId: string, action: string): Call;
  /** Key from which refresh tokens are derived. */
  readonly refreshKey: Buffer;
  /** `iss` of the tokens: the trust domain. */
  readonly issuer: string;
  /** Folder of the file that holds the set-up code. */
  readonly stateDir: string;
  /** Erases an organisation at a sibling. */
  eraseAt(service: ServiceName, orgId: string): Promise<Erased>;
}

/** What one service erased of an organisation, by table or store, and what it still found afterwards. */
export interface Erased {
  readonly erased: Record<string, number>;
  readonly remaining: number;
}

/** How long a sibling may take to erase an organisation, milliseconds. */
const eraseTimeoutMs = 60_000;

/** Opens what the service's parts need. Makes the first signing key if there is none. */
export async function openDependencies(
  runtime: Runtime,
  database: Database<IdentitySchema>,
  outbox: Outbox,
): Promise<Dependencies> {
  const { clock, log, masterKey, stateDir, trustDomain } = runtime;
  return {
    database,
    clock,
    log,
    keyRing: await openKeyRing({ database, masterKey, clock, log }),
    revocations: openRevocationLog({ database, outbox, clock, log }),
    pager: createPager(masterKey.derive("identity/page-tokens")),
    edgeIssuer: await openEdgeIssuer({ database, masterKey, clock, issuer: trustDomain }),
    edgeBell: createBell(),
    edge: () => runtime.client(EdgeService),
    systemCall: (orgId, action) => runtime.systemCall(orgId, action),
    refreshKey: masterKey.derive("identity/refresh-tokens"),
    issuer: trustDomain,
    stateDir,
    async eraseAt(service, orgId) {
      const client = runtime.clientOf(service, TenantService);
      const answer = await client.eraseTenant({ orgId }, { timeoutMs: eraseTimeoutMs });
      const erased = Object.fromEntries(Object.entries(answer.erased).map(([table, count]) => [table, Number(count)]));
      return { erased, remaining: Number(answer.remaining) };
    },
  };
}

import { randomBytes } from "node:crypto";
import { tmpdir } from "node:os";
import {
  type CallOptions,
  type Client,
  createClient,
  createRouterTransport,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import { createValidateInterceptor } from "@connectrpc/validate";
import type { Caller, CallerKind } from "@octomesh/mesh/caller";
import { type Clock, systemClock } from "@octomesh/mesh/clock";
import { type Connection, connectionKey } from "@octomesh/mesh/connection";
import type { Credentials } from "@octomesh/mesh/credentials";
import type { Database } from "@octomesh/mesh/database";
import { delegateHeader, formatDelegation } from "@octomesh/mesh/delegation";
import { enforcePolicy } from "@octomesh/mesh/enforce-policy";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { createMasterKey } from "@octomesh/mesh/master-key";
import { loadPolicies } from "@octomesh/mesh/policy";
import type { RateLimiter } from "@octomesh/mesh/ratelimit";
import type { Runtime, Service } from "@octomesh/mesh/service";
import type { TestDatabase } from "@octomesh/mesh/test/database-fixture";
import { DeviceGroupService } from "@octomesh/proto/octomesh/device/v1/device_group_service_pb";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { Role, type Scope, ScopeSchema } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import pino from "pino";
import { Registry } from "prom-client";
import { createService } from "../service.ts";
import type { DeviceRegistryTables } from "../tables.ts";
import { type FakeIdentity, fakeIdentity } from "./fake-identity.ts";
import { type FakeRollout, fakeRollout } from "./fake-rollout.ts";

const log = pino({ level: "silent" });
const callerHeader = "x-test-caller";
const peerHeader = "x-test-peer";

/** Clients of the service under test, each call as some caller. */
export interface TestClients {
  readonly devices: Client<typeof DeviceService>;
  readonly groups: Client<typeof DeviceGroupService>;
  readonly tenants: Client<typeof TenantService>;
}

/** The service under test: its real routes behind the real policy, its siblings by fakes, its database real. */
export interface TestService extends TestClients {
  readonly service: Service;
  readonly identity: FakeIdentity;
  readonly rollout: FakeRollout;
  stop(): Promise<void>;
}

/** Starts one replica. Replicas that share a database share the fakes too, if they are given. */
export async function startTestService(options: {
  database: TestDatabase<DeviceRegistryTables>;
  identity?: FakeIdentity;
  rollout?: FakeRollout;
  clock?: Clock;
  env?: Record<string, string>;
}): Promise<TestService> {
  const identity = options.identity ?? fakeIdentity();
  const rollout = options.rollout ?? fakeRollout();
  const siblings = createRouterTransport((router) => {
    identity.routes(router);
    rollout.routes(router);
  });
  const own = await options.database.reopen();
  const runtime: Runtime = {
    name: "device-registry",
    stateDir: tmpdir(),
    log,
    clock: options.clock ?? systemClock,
    masterKey: createMasterKey([randomBytes(32)]),
    metrics: new Registry(),
    env: options.env ?? {},
    trustDomain: "octomesh.test",
    publicUrl: "http://localhost:8080",
    verdictUrl: () => "https://localhost:7206",
    trustBundle: () => "",
    redisUrl: undefined,
    isRevoked: () => false,
    openDatabase: async <DB>() => own as unknown as Database<DB>,
    client: (service) => createClient(service, siblings),
    clientOf: (_, service) => createClient(service, siblings),
    delegated: (call): CallOptions => ({ signal: call.signal, headers: { [delegateHeader]: formatDelegation(call) } }),
    systemCall() {
      throw new Error("this service does no audited work of its own");
    },
  };
  const service = await createService(runtime);
  await service.start();
  const transport = serve(service);
  return {
    service,
    identity,
    rollout,
    devices: createClient(DeviceService, transport),
    groups: createClient(DeviceGroupService, transport),
    tenants: createClient(TenantService, transport),
    stop: () => service.stop(),
  };
}

/** Options that make a call one of a device, a member, a key or a bootstrap token. */
export function as(kind: CallerKind, orgId: string, id: string = newId("key")): CallOptions {
  return { headers: { [callerHeader]: JSON.stringify({ kind, orgId, id }) } };
}

/** Options that make a call one of a sibling. */
export function asPeer(peer: string): CallOptions {
  return { headers: { [peerHeader]: peer } };
}

function serve(service: Service): Transport {
  const policies = loadPolicies([DeviceService, DeviceGroupService, TenantService]);
  const connect: Interceptor = (next) => async (request) => {
    const peer = request.header.get(peerHeader);
    const connection: Connection =
      peer === null
        ? { listener: "public", address: "192.0.2.1" }
        : {
            listener: "mesh",
            address: "127.0.0.1",
            peer: { service: peer as "identity", spiffeId: `spiffe://octomesh.test/${peer}` },
          };
    request.contextValues.set(connectionKey, connection);
    return await next(request);
  };
  const enforce = enforcePolicy(policies, { credentials: headerCredentials, limiter: noLimit, log, denied() {} });
  return createRouterTransport((router) => service.routes(router), {
    router: { interceptors: [connect, enforce, createValidateInterceptor()] },
  });
}

const everyScope: ReadonlySet<Scope> = new Set(ScopeSchema.values.map((value) => value.number));

/** Believes the header that `as` sets: who calls is not what is tested here. */
const headerCredentials: Credentials = {
  async authenticate({ connection, header }) {
    const common = { scopes: everyScope, plan: 3, address: connection.address, issuedMs: 0, sandbox: false };
    if (connection.peer !== undefined) {
      const { service, spiffeId } = connection.peer;
      return {
        ...common,
        kind: "peer",
        orgId: "",
        id: service,
        credentialId: spiffeId,
        role: Role.UNSPECIFIED,
        peer: service,
      };
    }
    const value = header.get(callerHeader);
    if (value === null) throw fail(Reason.CREDENTIAL_MISSING, "the call needs a credential");
    const { kind, orgId, id } = JSON.parse(value) as Pick<Caller, "kind" | "orgId" | "id">;
    return { ...common, kind, orgId, id, credentialId: id, role: kind === "session" ? Role.OWNER : Role.UNSPECIFIED };
  },
  guard: () => ({ signal: new AbortController().signal, release() {} }),
  async stop() {},
};

const noLimit: RateLimiter = {
  take: async () => ({ allowed: true, limit: 1, remaining: 1, resetMs: 0, retryAfterMs: 0 }),
  async close() {},
};

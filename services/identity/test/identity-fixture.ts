import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DescService } from "@bufbuild/protobuf";
import {
  type Client,
  createClient,
  createRouterTransport,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import { createValidateInterceptor } from "@connectrpc/validate";
import { defaultLimits } from "@octomesh/mesh/admit";
import { systemClock } from "@octomesh/mesh/clock";
import { type Connection, connectionKey } from "@octomesh/mesh/connection";
import { createCredentials } from "@octomesh/mesh/credentials";
import type { Database } from "@octomesh/mesh/database";
import { delegateHeader, formatDelegation } from "@octomesh/mesh/delegation";
import { enforcePolicy } from "@octomesh/mesh/enforce-policy";
import { fail, Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { createMasterKey } from "@octomesh/mesh/master-key";
import { createRpcMetrics, observe } from "@octomesh/mesh/observe";
import { digestToken, mintToken } from "@octomesh/mesh/opaque-token";
import { openOutbox } from "@octomesh/mesh/outbox";
import { loadPolicies } from "@octomesh/mesh/policy";
import { createRateLimiter } from "@octomesh/mesh/ratelimit";
import { registrationsOf } from "@octomesh/mesh/registrations";
import { createRevocations, type Revocations } from "@octomesh/mesh/revocations";
import type { Runtime, Service } from "@octomesh/mesh/service";
import type { ServiceName } from "@octomesh/mesh/service-name";
import { createSystemCall } from "@octomesh/mesh/system-call";
import { openTestDatabase, type TestDatabase, testCall } from "@octomesh/mesh/test/database-fixture";
import { EdgeService } from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";
import { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import type { Session } from "@octomesh/proto/octomesh/identity/v1/session_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterAll } from "vitest";
import { type Dependencies, openDependencies } from "../dependencies.ts";
import type { IdentitySchema } from "../schema.ts";
import { createService } from "../service.ts";
import { setUpCodePath } from "../set-up-code.ts";
import { insertMember } from "../store/members.ts";
import { insertOrganizations } from "../store/organizations.ts";
import { createFakeEdge, type FakeEdge } from "./fake-edge.ts";

/** Who calls in a test: the credential it shows, or the service it is. */
export type TestCaller =
  | { readonly bearer: string }
  | { readonly peer: ServiceName; readonly actsFor?: string }
  | "public";

/** A sibling as identity sees it at an erasure: what it holds of each organisation, and whether it answers. */
export interface TestSibling {
  readonly rows: Map<string, number>;
  isAway: boolean;
}

/** The identity service on a real database, behind its real policy, with a sibling that follows its revocations. */
export interface TestIdentity {
  readonly database: TestDatabase<IdentitySchema>;
  readonly service: Service;
  /** What the service's parts need, for tests of parts that no call reaches. */
  readonly dependencies: Dependencies;
  /** The service's clock: milliseconds to add to the machine's. Credentials are checked on the machine's. */
  readonly time: { offsetMs: number };
  /** What a live sibling knows of revocations. */
  readonly revocations: Revocations;
  readonly siblings: ReadonlyMap<ServiceName, TestSibling>;
  /** The deployment's own edge. It is away until a test brings it. */
  readonly edge: FakeEdge;
  readonly stateDir: string;
  /** Everything that was logged. */
  readonly logged: string[];
  client<S extends DescService>(service: S, caller: TestCaller): Client<S>;
  setUpCode(): Promise<string>;
  /** Sets the organisation up: its ids, its owner's session. */
  setUp(): Promise<TestOrganization>;
  /** Another organisation, which a mesh that is hosted for several would have. */
  addOrganization(displayName: string): Promise<TestOrganization>;
}

/** An organisation of a test. */
export interface TestOrganization {
  readonly orgId: string;
  readonly testOrgId: string;
  readonly ownerId: string;
  readonly session: Session;
}

/** The reason that a call was refused for; undefined where it was not refused. */
export async function refusalOf(call: Promise<unknown>): Promise<Reason | undefined> {
  try {
    await call;
    return undefined;
  } catch (error) {
    const reason = reasonOf(error);
    if (reason === undefined) throw error;
    return reason;
  }
}

const callerHeader = "x-test-caller";
const trustDomain = "octomesh.test";

/**
 * Starts the service in this process: real routes, policy, validation and database, no socket. Call it at the top level
 * of a test file; it ends with the file.
 */
export async function startTestIdentity(): Promise<TestIdentity> {
  const database = await openTestDatabase<IdentitySchema>({
    service: "identity",
    migrations: new URL("../migrations/", import.meta.url),
    // Tests ask for much at once on machines that do much else.
    database: { connectTimeoutMs: 60_000 },
  });
  const stateDir = await mkdtemp(join(tmpdir(), "octomesh-test-identity-"));
  const logged: string[] = [];
  const log = pino({ level: "trace" }, { write: (line: string) => void logged.push(line) });
  const time = { offsetMs: 0 };
  const siblings = new Map<ServiceName, TestSibling>(
    (["device-registry", "rollout", "telemetry", "edge-relay", "verdict"] as const).map((name) => [
      name,
      { rows: new Map(), isAway: false },
    ]),
  );
  const edge = createFakeEdge();
  const runtime: Runtime = {
    name: "identity",
    stateDir,
    log,
    clock: { now: () => Date.now() + time.offsetMs },
    masterKey: createMasterKey([randomBytes(32)]),
    metrics: new Registry(),
    env: {},
    trustDomain,
    publicUrl: "http://localhost:8080",
    verdictUrl: () => "https://localhost:7206",
    trustBundle: () => "",
    redisUrl: undefined,
    isRevoked: () => false,
    openDatabase: async <DB>() => database as unknown as Database<DB>,
    client: <S extends DescService>(desc: S) => {
      if (desc.typeName !== EdgeService.typeName) throw new Error(`identity does not call ${desc.typeName}`);
      return edge.client as unknown as Client<S>;
    },
    clientOf: (sibling, desc) => createClient(desc, siblingTransport(siblings, sibling)),
    delegated: () => ({}),
    systemCall: (orgId, action) => createSystemCall("identity", orgId, action, log),
  };
  const service = await createService(runtime);
  const outbox = openOutbox<IdentitySchema>(database, { log });
  const dependencies = await openDependencies(runtime, database, outbox);
  const limiter = createRateLimiter({
    limits: { ...defaultLimits, unauthenticated: unlimited },
    clock: systemClock,
    log,
  });
  const registrations = registrationsOf((router) => service.routes(router));
  const policies = loadPolicies(registrations.map((each) => each.service));

  // The credentials' own calls come as a sibling's, over the same transport.
  const holder: { transport?: Transport } = {};
  const late: Transport = {
    unary: (...args) => transportOf(holder).unary(...args),
    stream: (...args) => transportOf(holder).stream(...args),
  };
  const asPeer = createClient(CredentialService, withHeaders(late, headersOf({ peer: "rollout" })));
  const revocations = createRevocations({ client: asPeer, subscriberId: "rollout-test", clock: systemClock, log });
  const credentials = createCredentials({
    client: asPeer,
    revocations,
    limiter,
    issuer: trustDomain,
    clock: systemClock,
    log,
  });
  const admission = { credentials, limiter, log, denied: () => undefined };
  holder.transport = createRouterTransport((router) => service.routes(router), {
    router: {
      interceptors: [
        connect,
        observe(log, createRpcMetrics(new Registry())),
        enforcePolicy(policies, admission),
        createValidateInterceptor(),
      ],
    },
  });
  await service.start();
  await revocations.start();
  afterAll(async () => {
    await credentials.stop();
    await revocations.stop();
    await outbox.close();
    await service.stop();
    await limiter.close();
    await rm(stateDir, { recursive: true, force: true });
  });

  const client = <S extends DescService>(desc: S, caller: TestCaller): Client<S> =>
    createClient(desc, withHeaders(transportOf(holder), headersOf(caller)));

  const addOrganization = async (displayName: string): Promise<TestOrganization> => {
    const [orgId, testOrgId, ownerId] = [newId("org"), newId("org"), newId("usr")];
    const now = new Date();
    const common = {
      plan: 1,
      device_token_expiry_ms: 86_400_000,
      create_time: now,
      update_time: now,
      delete_time: null,
    };
    const code = mintToken("edg_invite_");
    const email = `owner@${ownerId.slice(4, 12)}.test`;
    await database.system(async (tx) => {
      await insertOrganizations(tx, [
        { ...common, org_id: orgId, paired_id: testOrgId, display_name: displayName, environment: 1 },
        { ...common, org_id: testOrgId, paired_id: orgId, display_name: displayName, environment: 2 },
      ]);
      await insertMember(tx, {
        org_id: orgId,
        id: ownerId,
        email,
        role: 3,
        state: 1,
        create_time: now,
        update_time: now,
        invitation_digest: digestToken(code),
        invitation_expire_time: new Date(now.getTime() + 60_000),
      });
    });
    const session = await client(SessionService, "public").acceptInvitation({ invitationCode: code, email });
    return { orgId, testOrgId, ownerId, session };
  };
  const setUpCode = async (): Promise<string> => (await readFile(setUpCodePath(stateDir), "utf8")).trim();

  return {
    database,
    service,
    dependencies,
    time,
    revocations,
    siblings,
    edge,
    stateDir,
    logged,
    client,
    setUpCode,
    addOrganization,
    async setUp() {
      const answer = await client(OrganizationService, "public").setUpOrganization({
        setupCode: await setUpCode(),
        displayName: "Acme",
        ownerEmail: "Owner@Example.com",
      });
      const { organization, session } = answer;
      if (organization === undefined || session === undefined) throw new Error("a set-up answers both");
      return { orgId: organization.id, testOrgId: organization.pairedId, ownerId: session.memberId, session };
    },
  };
}

const unlimited = { points: 1_000_000, windowMs: 60_000 };

function headersOf(caller: TestCaller): Record<string, string> {
  if (caller === "public") return {};
  if ("bearer" in caller) return { authorization: `Bearer ${caller.bearer}` };
  return {
    [callerHeader]: caller.peer,
    ...(caller.actsFor === undefined ? {} : { [delegateHeader]: formatDelegation(testCall(caller.actsFor)) }),
  };
}

/** Stands in for the listeners: says over which one, and from whom, a request came. */
const connect: Interceptor = (next) => async (request) => {
  const peer = request.header.get(callerHeader) as ServiceName | null;
  const connection: Connection =
    peer === null
      ? { listener: "public", address: "192.0.2.1" }
      : {
          listener: "mesh",
          address: "192.0.2.2",
          peer: { service: peer, spiffeId: `spiffe://${trustDomain}/${peer}` },
        };
  request.contextValues.set(connectionKey, connection);
  return await next(request);
};

function transportOf(holder: { transport?: Transport }): Transport {
  if (holder.transport === undefined) throw new Error("the transport is not open yet");
  return holder.transport;
}

function withHeaders(transport: Transport, headers: Record<string, string>): Transport {
  const merge = (given: HeadersInit | undefined): Headers => {
    const merged = new Headers(given);
    for (const [name, value] of Object.entries(headers)) merged.set(name, value);
    return merged;
  };
  return {
    unary: (method, signal, timeoutMs, header, input, contextValues) =>
      transport.unary(method, signal, timeoutMs, merge(header), input, contextValues),
    stream: (method, signal, timeoutMs, header, input, contextValues) =>
      transport.stream(method, signal, timeoutMs, merge(header), input, contextValues),
  };
}

function siblingTransport(siblings: ReadonlyMap<ServiceName, TestSibling>, name: ServiceName): Transport {
  return createRouterTransport((router) => {
    router.service(TenantService, {
      eraseTenant({ orgId }) {
        const sibling = siblings.get(name);
        if (sibling === undefined || sibling.isAway) throw fail(Reason.SERVICE_UNAVAILABLE, `${name} is away`);
        const rows = sibling.rows.get(orgId) ?? 0;
        sibling.rows.delete(orgId);
        return { erased: { rows: BigInt(rows) }, remaining: 0n };
      },
    });
  });
}

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import type { TLSSocket } from "node:tls";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { type CallOptions, type Client, createConnectRouter } from "@connectrpc/connect";
import { createValidateInterceptor } from "@connectrpc/validate";
import { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { sql } from "kysely";
import type { Logger } from "pino";
import { collectDefaultMetrics, Registry } from "prom-client";
import { createAdminHandler } from "./admin-handler.ts";
import type { AdmissionDeps } from "./admit.ts";
import type { Call } from "./call.ts";
import type { Caller } from "./caller.ts";
import { createSiblingClients, delegatedOptions } from "./client.ts";
import { clientAddressOf, forwardedOf } from "./client-address.ts";
import { systemClock } from "./clock.ts";
import type { Connection } from "./connection.ts";
import { admitsEdges, publicServices } from "./contract.ts";
import { createCors } from "./cors.ts";
import { createCredentials } from "./credentials.ts";
import { openDatabase } from "./database.ts";
import { edgeConnectionOf } from "./edge-connection.ts";
import { edgePortTls, type PortCertificate } from "./edge-port.ts";
import { createEdgeTrust, type EdgeTrust } from "./edge-trust.ts";
import { enforcePolicy } from "./enforce-policy.ts";
import { createHealth, type HealthState, healthRoutes } from "./health.ts";
import { createHttpHandler, type HttpHandler, type HttpHandlerOptions } from "./http-handler.ts";
import {
  type Listener,
  type ListenOptions,
  listenMutualTls,
  listen as listenOn,
  listenPlain,
  listenTls,
  socketAddressOf,
  socketOf,
} from "./listen.ts";
import { createLogger } from "./log.ts";
import { openMasterKey } from "./master-key.ts";
import { createRpcMetrics, observe } from "./observe.ts";
import { answerUnknown, createOrigin } from "./origin.ts";
import { loadPolicies, ownerOf, type Policy } from "./policy.ts";
import { createRateLimiter } from "./ratelimit.ts";
import { reflectionRoutes } from "./reflection.ts";
import { registrationsOf } from "./registrations.ts";
import { bindingsOf, createRestRouter } from "./rest.ts";
import { createRevocations } from "./revocations.ts";
import type { RuntimeConfig } from "./runtime-config.ts";
import type { CreateService, HttpRequest, Runtime } from "./service.ts";
import { type ServiceName, variableOf } from "./service-name.ts";
import { createShutdown, type Shutdown } from "./shutdown.ts";
import { createSystemCall } from "./system-call.ts";
import { openTelemetry } from "./telemetry.ts";
import { type MeshIdentity, openDevelopmentAuthority, openIdentityFiles, peerOf } from "./tls.ts";

/** A service of the mesh that listens. */
export interface RunningService {
  readonly name: ServiceName;
  readonly ports: { readonly mesh: number; readonly public: number | undefined; readonly admin: number };
  readonly health: HealthState;
  /** Ports that the service opened itself, by name; none before it is ready. */
  ownPorts(): Readonly<Record<string, number>>;
  /** Serves the service's public surface for somebody else's listener: the one origin of `npm start`. */
  readonly publicHandler: HttpHandler;
  /** Learns what was revoked, starts the background loops, and is ready then. Waits for identity as long as it takes. */
  ready(): Promise<void>;
  /** Drains and ends everything. */
  stop(): Promise<void>;
}

/** What the one who starts a service decides. */
export interface StartOptions {
  readonly name: ServiceName;
  readonly create: CreateService;
  readonly config: RuntimeConfig;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Base URL of a sibling's mesh port, `https://host:port`. */
  urlOf(sibling: ServiceName): string;
  /** Where the verdict service is reached, where the configuration does not say; its configured port if not given. */
  readonly verdictUrl?: () => string;
  /**
   * The service shares its process and the one public origin with the others: no public port of its own, but for the
   * one that edges reach. `origin` adds health and reflection for the whole origin to this service's public handler.
   */
  readonly embedded?: { readonly origin: boolean };
  readonly log?: Logger;
}

const readMaxBytes = 4 * 1024 * 1024;
const writeMaxBytes = 16 * 1024 * 1024;
const maxTimeoutMs = 120_000;
const graceToSpareMs = 5_000;

/**
 * Opens a service: reads its policies, opens what it needs and listens on its ports. It answers calls between services
 * from then on, and everyone once `ready` has resolved.
 */
export async function startService(options: StartOptions): Promise<RunningService> {
  const { name, config } = options;
  const log = options.log ?? createLogger({ service: name, level: config.logLevel, pretty: process.stdout.isTTY });
  const shutdown = createShutdown(log);
  try {
    return await open(options, log, shutdown);
  } catch (error) {
    await shutdown.run("the start failed");
    throw error;
  }
}

async function open(options: StartOptions, log: Logger, shutdown: Shutdown): Promise<RunningService> {
  const { name, config, embedded } = options;
  const clock = systemClock;
  const metrics = new Registry();
  metrics.setDefaultLabels({ service: name });
  if (embedded === undefined) collectDefaultMetrics({ register: metrics });
  const health = createHealth();

  const telemetry = await openTelemetry({ service: name, tracing: config.tracing, log });
  shutdown.add("traces", () => telemetry.close());
  const identity = await openIdentity(name, config);
  shutdown.add("identity", () => identity.close());
  const siblings = createSiblingClients({ identity, trustDomain: config.trustDomain, urlOf: options.urlOf, telemetry });
  shutdown.add("sibling clients", () => siblings.close());
  const limiter = createRateLimiter({ limits: config.limits, redisUrl: config.redisUrl, clock, log, metrics });
  shutdown.add("rate limiter", () => limiter.close());

  const client = siblings.client("identity", CredentialService);
  const subscriberId = `${name}-${randomBytes(9).toString("base64url")}`;
  const revocations = createRevocations({ client, subscriberId, clock, log });
  const edgeTrust = admitsEdges(name) ? createEdgeTrust({ client, clock, log }) : undefined;
  const credentials = createCredentials({
    client,
    revocations,
    limiter,
    issuer: config.trustDomain,
    ...(edgeTrust && { edgeTrust }),
    clock,
    log,
  });
  if (edgeTrust !== undefined) {
    shutdown.add("edge trust", () => edgeTrust.stop());
    health.addCheck("edge trust", async () => (edgeTrust.isKnown() ? undefined : "identity has not told it"));
  }
  health.addCheck("revocations", async () => (revocations.isFresh() ? undefined : "out of sight of identity"));

  const runtime: Runtime = {
    name,
    stateDir: config.stateDir,
    log,
    clock,
    masterKey: await openMasterKey(
      config.masterKey === undefined
        ? { stateDir: config.stateDir }
        : { key: config.masterKey, variable: "OCTOMESH_MASTER_KEY" },
    ),
    metrics,
    env: options.environment,
    trustDomain: config.trustDomain,
    publicUrl: config.publicUrl,
    verdictUrl: () => config.verdictUrl ?? options.verdictUrl?.() ?? `https://localhost:${config.verdictPort}`,
    trustBundle: () => identity.current().bundle,
    redisUrl: config.redisUrl,
    isRevoked: (subject, id) => revocations.isRevoked(subject, id, 0),
    openDatabase: <DB>(migrations: URL) => openServiceDatabase<DB>(name, config, migrations, log, health),
    client<S extends DescService>(service: S): Client<S> {
      const owner = ownerOf(service);
      if (owner === undefined) throw new Error(`${service.typeName} has no owner: use clientOf`);
      return siblings.client(owner, service);
    },
    clientOf: (sibling, service) => siblings.client(sibling, service),
    delegated: (call: Call): CallOptions => delegatedOptions(call),
    systemCall: (orgId, action) => createSystemCall(name, orgId, action, log),
  };
  const service = await options.create(runtime);
  shutdown.add("service", () => service.stop());
  shutdown.add("credentials", () => credentials.stop());
  shutdown.add("revocations", () => revocations.stop());

  const registrations = registrationsOf((router) => service.routes(router));
  const policies = new Map(loadPolicies(registrations.map((each) => each.service)));
  for (const route of service.http) {
    if (!policies.has(route.method))
      throw new Error(`${route.method.name} is HTTP of a service that is not registered`);
  }
  const admission: AdmissionDeps = {
    credentials,
    limiter,
    log,
    draining: shutdown.signal,
    denied: (caller, policy, method, reason, requestId) => logDenial(log, caller, policy, method, reason, requestId),
  };
  const rpcMetrics = createRpcMetrics(metrics);
  // No shutdownSignal: it would abort unary calls under way, which a drain lets finish. Streams end by enforcePolicy.
  const routerOptions = {
    interceptors: [
      observe(log, rpcMetrics, telemetry),
      enforcePolicy(policies, admission),
      createValidateInterceptor(),
    ],
    readMaxBytes,
    writeMaxBytes,
    maxTimeoutMs,
    jsonOptions: { useProtoFieldName: true, alwaysEmitImplicit: true, ignoreUnknownFields: false },
  };
  const isPublic = (each: DescService): boolean =>
    each.methods.some((method) => policies.get(method)?.isPublic === true);

  const meshRouter = createConnectRouter(routerOptions);
  const publicRouter = createConnectRouter(routerOptions);
  for (const { service: each, implementation } of registrations) {
    meshRouter.service(each, implementation);
    if (isPublic(each)) publicRouter.service(each, implementation);
  }
  const all = registrations.map((each) => each.service);
  const reflected = embedded?.origin === true ? publicServices : all.filter(isPublic);
  healthRoutes(
    meshRouter,
    health,
    all.map((each) => each.typeName),
  );
  reflectionRoutes(meshRouter, all);
  if (embedded === undefined || embedded.origin) {
    healthRoutes(
      publicRouter,
      health,
      reflected.map((each) => each.typeName),
    );
    reflectionRoutes(publicRouter, reflected);
  }
  for (const { service: each, method } of meshRouter.handlers) {
    if (policies.has(method)) continue;
    for (const [foreign, policy] of loadPolicies([each])) policies.set(foreign, policy);
  }

  const shared = { policies, admission, log, metrics: rpcMetrics, telemetry };
  const meshHandler = createHttpHandler({
    ...shared,
    handlers: meshRouter.handlers,
    routes: [],
    connectionOf: (request) => meshConnection(request, config),
  });
  const publicOptions: Omit<HttpHandlerOptions, "connectionOf"> = {
    ...shared,
    handlers: publicRouter.handlers,
    routes: service.http,
    rest: createRestRouter(
      all
        .flatMap((each) => each.methods)
        .filter((method) => policies.get(method)?.isPublic === true)
        .flatMap(bindingsOf),
    ),
    cors: createCors(config.corsOrigins),
  };
  const publicHandler = createHttpHandler({
    ...publicOptions,
    connectionOf: (request) => publicConnection(request, config),
  });

  const listeners: Listener[] = [];
  // All drain at the same time, so that one grace is enough for all of them.
  const ports = async (): Promise<void> => {
    await Promise.all(listeners.map((listener) => listener.close(config.graceMs)));
  };
  shutdown.add("ports", ports, config.graceMs + graceToSpareMs);
  const listen = async (work: Promise<Listener>): Promise<number> => {
    const listener = await work;
    listeners.push(listener);
    return listener.port;
  };
  const variable = `OCTOMESH_${variableOf(name)}`;
  const { allowPlaintext } = config;
  const admin = await listen(
    listenPlain({
      host: config.adminHost,
      port: config.ports.admin,
      portVariable: `${variable}_ADMIN_PORT`,
      allowPlaintext,
      log,
      handler: createAdminHandler(
        health,
        metrics,
        all.map((each) => each.typeName),
      ),
    }),
  );
  const mesh = await listen(
    listenMutualTls({
      host: config.meshHost,
      port: config.ports.mesh,
      portVariable: `${variable}_MESH_PORT`,
      identity,
      log,
      handler: (request, response) => {
        if (!meshHandler(request, response)) answerUnknown(request, response);
      },
    }),
  );
  const publicPort = await openPublicPort();

  async function openPublicPort(): Promise<number | undefined> {
    if (edgeTrust !== undefined) {
      const connectionOf = (request: HttpRequest): Connection => edgeConnection(request, config, clock.now());
      const handler = createHttpHandler({ ...publicOptions, connectionOf });
      const certificate = edgePortCertificate(config, identity);
      return listen(listenToEdges({ name, config, log, handler, health, certificate, edgeTrust }));
    }
    return embedded === undefined ? listen(listenPublic(name, config, log, publicHandler, health)) : undefined;
  }

  return {
    name,
    ports: { mesh, public: publicPort, admin },
    health,
    ownPorts: () => service.ports?.() ?? {},
    publicHandler,
    async ready() {
      await Promise.all([revocations.start(), edgeTrust?.start()]);
      await service.start();
      health.set("serving");
    },
    async stop() {
      health.set("draining");
      await shutdown.run("stop");
    },
  };
}

async function openIdentity(name: ServiceName, config: RuntimeConfig): Promise<MeshIdentity> {
  if (config.identityFiles !== undefined) return openIdentityFiles(config.identityFiles, config.trustDomain, name);
  const authority = await openDevelopmentAuthority(config.stateDir, config.trustDomain);
  return authority.issue(name);
}

async function openServiceDatabase<DB>(
  name: ServiceName,
  config: RuntimeConfig,
  migrations: URL,
  log: Logger,
  health: HealthState,
) {
  const variable = `OCTOMESH_${variableOf(name)}`;
  if (config.databaseUrl === undefined) throw new Error(`${variable}_DATABASE_URL is not set`);
  const database = await openDatabase<DB>({
    service: name,
    url: config.databaseUrl,
    migrationUrl: config.migrationUrl,
    migrations,
    log,
    production: config.production,
    urlVariable: `${variable}_DATABASE_URL`,
    migrationUrlVariable: `${variable}_MIGRATION_URL`,
  });
  health.addCheck("database", async () => {
    await database.system((tx) => sql`select 1`.execute(tx));
    return undefined;
  });
  return database;
}

function listenPublic(
  name: ServiceName,
  config: RuntimeConfig,
  log: Logger,
  handler: HttpHandler,
  health: HealthState,
): Promise<Listener> {
  const base = publicListenOptions(name, config, log, handler, health);
  if (config.publicTls === undefined) return listenPlain({ ...base, allowPlaintext: config.allowPlaintext });
  return listenTls({ ...base, ...readPublicTls(config.publicTls) });
}

function publicListenOptions(
  name: ServiceName,
  config: RuntimeConfig,
  log: Logger,
  handler: HttpHandler,
  health: HealthState,
): ListenOptions {
  return {
    host: config.host,
    port: config.ports.public,
    portVariable: `OCTOMESH_${variableOf(name)}_PUBLIC_PORT`,
    log,
    ...(config.proxyProtocol ? { proxyProtocolFrom: config.trustedProxies } : {}),
    handler: createOrigin([handler], async () => Object.keys(await health.problems()).length === 0),
  };
}

function readPublicTls(files: NonNullable<RuntimeConfig["publicTls"]>): { key: string; certificate: string } {
  return { key: readFileSync(files.keyFile, "utf8"), certificate: readFileSync(files.certificateFile, "utf8") };
}

/** The public port of a service that edges call. It stands beside the one origin, and is never plaintext. */
function listenToEdges(options: {
  name: ServiceName;
  config: RuntimeConfig;
  log: Logger;
  handler: HttpHandler;
  health: HealthState;
  certificate: PortCertificate;
  edgeTrust: EdgeTrust;
}): Promise<Listener> {
  const { name, config, log, handler, health, certificate, edgeTrust } = options;
  const base = publicListenOptions(name, config, log, handler, health);
  return listenOn({ ...base, tls: edgePortTls(certificate, edgeTrust) });
}

/** What the edges' port proves itself with: the configured files, else the service's own identity, for development. */
function edgePortCertificate(config: RuntimeConfig, identity: MeshIdentity): PortCertificate {
  if (config.publicTls === undefined) {
    return { current: () => identity.current(), onChange: (callback) => identity.onChange(callback) };
  }
  const files = readPublicTls(config.publicTls);
  return { current: () => files };
}

function meshConnection(request: HttpRequest, config: RuntimeConfig): Connection {
  const socket = socketOf(request);
  const peer = socket === undefined ? undefined : peerOf(socket as TLSSocket, config.trustDomain);
  return { listener: "mesh", address: socket?.remoteAddress ?? "", ...(peer === undefined ? {} : { peer }) };
}

function publicConnection(request: HttpRequest, config: RuntimeConfig): Connection {
  const address = clientAddressOf(socketAddressOf(request), forwardedOf(request), config.trustedProxies);
  return { listener: "public", address };
}

/** Over the edges' port a connection proves more than its address. */
function edgeConnection(request: HttpRequest, config: RuntimeConfig, nowMs: number): Connection {
  const socket = socketOf(request);
  const edge = socket === undefined ? {} : edgeConnectionOf(socket as TLSSocket, config.trustDomain, nowMs);
  return { ...publicConnection(request, config), edge };
}

function logDenial(
  log: Logger,
  caller: Caller,
  policy: Policy,
  method: DescMethod,
  reason: string,
  requestId: string,
): void {
  log.info(
    {
      method: `${method.parent.typeName}/${method.name}`,
      action: policy.audit,
      caller: caller.kind,
      caller_id: caller.id,
      org_id: caller.orgId,
      request_id: requestId,
      reason,
    },
    "denied",
  );
}

import { isLoopbackHost } from "@octomesh/mesh/cidr";
import { type Listener, listenPlain } from "@octomesh/mesh/listen";
import { createLogger } from "@octomesh/mesh/log";
import { createOrigin } from "@octomesh/mesh/origin";
import { logLevelOf, readRuntimeConfig } from "@octomesh/mesh/runtime-config";
import { type RunningService, startService } from "@octomesh/mesh/serve";
import type { CreateService } from "@octomesh/mesh/service";
import { portsOf, type ServiceName, serviceNames } from "@octomesh/mesh/service-name";
import type { Shutdown } from "@octomesh/mesh/shutdown";
import type { Logger } from "pino";
import { createService as createDeviceRegistry } from "../services/device-registry/service.ts";
import { createService as createEdgeRelay } from "../services/edge-relay/service.ts";
import { createService as createIdentity } from "../services/identity/service.ts";
import { createService as createRollout } from "../services/rollout/service.ts";
import { createService as createTelemetry } from "../services/telemetry/service.ts";
import { createService as createVerdict } from "../services/verdict/service.ts";
import type { PostgresUrls } from "./external-postgres.ts";
import type { LaunchOptions } from "./options.ts";

/** Where a started mesh is. */
export interface MeshAddress {
  readonly publicUrl: string;
  /** Where edges and backends reach the verdict service, `https://…`. */
  readonly verdictUrl: string;
  /** Where pages reach the edge. */
  readonly edgeUrl: string;
  readonly services: readonly { readonly name: ServiceName; readonly mesh: number; readonly admin: number }[];
}

/** What a way of starting is given. */
export interface Launch {
  readonly options: LaunchOptions;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Opens the database. Called once the public port is held, so that a port in use is told before anything is made. */
  openPostgres(): Promise<PostgresUrls>;
  readonly log: Logger;
  readonly shutdown: Shutdown;
}

const creators: Readonly<Record<ServiceName, CreateService>> = {
  identity: createIdentity,
  "device-registry": createDeviceRegistry,
  rollout: createRollout,
  telemetry: createTelemetry,
  "edge-relay": createEdgeRelay,
  verdict: createVerdict,
};

/** How long calls under way may take to end. */
const drainMs = 10_000;

/** Starts the six services in this process, each on its own mutual-TLS port, behind one public origin. */
export async function startInOneProcess(launch: Launch): Promise<MeshAddress> {
  const { options, shutdown } = launch;
  const meshPorts = new Map<ServiceName, number>();
  const environment = serviceEnvironment(launch, publicUrlOf(launch));
  if (options.ephemeralPorts) environment[edgePortVariable] ??= "0";
  const level = logLevelOf(environment);
  const services: RunningService[] = [];
  let origin: ReturnType<typeof createOrigin> = (_request, response) => {
    response.statusCode = 503;
    response.end();
  };
  const listener = await listenPlain({
    host: options.host,
    port: options.port,
    portVariable: "OCTOMESH_PUBLIC_PORT (or --port)",
    allowPlaintext: environment.OCTOMESH_ALLOW_PLAINTEXT === "true",
    log: launch.log,
    handler: (request, response) => origin(request, response),
  });
  shutdown.add("public origin", () => listener.close(drainMs));
  const postgres = await launch.openPostgres();
  shutdown.add("services", () => stopInOrder(services, listener));
  if (options.port === 0 && environment.OCTOMESH_PUBLIC_URL === undefined) {
    environment.OCTOMESH_PUBLIC_URL = `http://localhost:${listener.port}`;
  }
  const verdictUrl = (): string => {
    const port = services.find(({ name }) => name === "verdict")?.ports.public ?? portsOf("verdict").public;
    return environment.OCTOMESH_VERDICT_PUBLIC_URL || `https://localhost:${port}`;
  };
  const start = async (name: ServiceName): Promise<RunningService> => {
    const urls = await postgres.urls(name);
    const config = readRuntimeConfig(name, environment);
    const service = await startService({
      name,
      create: creators[name],
      config: {
        ...config,
        databaseUrl: config.databaseUrl ?? urls.url,
        migrationUrl: config.migrationUrl ?? urls.migrationUrl,
        // Only the port that edges reach is opened beside the one origin, and where the origin is.
        host: options.host,
        ports: options.ephemeralPorts ? { mesh: 0, public: 0, admin: 0 } : config.ports,
      },
      environment,
      urlOf: (sibling) =>
        config.siblingUrls[sibling] ?? `https://127.0.0.1:${meshPorts.get(sibling) ?? portsOf(sibling).mesh}`,
      verdictUrl,
      embedded: { origin: name === "identity" },
      log: createLogger({ service: name, level, pretty: process.stdout.isTTY }),
    });
    meshPorts.set(name, service.ports.mesh);
    services.push(service);
    return service;
  };
  const results = await Promise.allSettled(serviceNames.map(start));
  for (const result of results) if (result.status === "rejected") throw result.reason;
  origin = createOrigin(
    services.map((service) => service.publicHandler),
    async () => services.every((service) => service.health.state === "serving"),
  );
  await Promise.all(services.map((service) => service.ready()));
  const edgePort = services.find(({ name }) => name === "edge-relay")?.ownPorts().edge;
  return {
    verdictUrl: verdictUrl(),
    edgeUrl: edgeUrlOf(environment, edgePort),
    publicUrl: environment.OCTOMESH_PUBLIC_URL ?? `http://localhost:${listener.port}`,
    services: serviceNames.flatMap((name) => {
      const service = services.find((each) => each.name === name);
      return service === undefined ? [] : [{ name, mesh: service.ports.mesh, admin: service.ports.admin }];
    }),
  };
}

/**
 * Takes no new callers, then ends the services: those that follow others first, identity last, so that each can say
 * good-bye to the ones it follows.
 */
async function stopInOrder(services: readonly RunningService[], origin: Listener): Promise<void> {
  const drained = origin.close(drainMs);
  const followed: readonly ServiceName[] = ["rollout", "identity"];
  await Promise.all(services.filter(({ name }) => !followed.includes(name)).map((service) => service.stop()));
  for (const name of followed) await services.find((service) => service.name === name)?.stop();
  await drained;
}

/** Where users reach the mesh: what is configured, else the origin's port on this machine. */
export function publicUrlOf({ options, environment }: Launch): string | undefined {
  if (environment.OCTOMESH_PUBLIC_URL !== undefined) return environment.OCTOMESH_PUBLIC_URL;
  if (options.port === 0) return undefined;
  return `http://${isLoopbackHost(options.host) ? "localhost" : options.host}:${options.port}`;
}

/** The variable of the port that pages reach. */
export const edgePortVariable = "OCTOMESH_EDGE_RELAY_EDGE_PORT";
const edgePortDefault = 8090;

/** Where pages on this machine reach the edge, on the port that it opened or was told to open. */
export function edgeUrlOf(environment: Readonly<Record<string, string | undefined>>, port?: number): string {
  const host = environment.OCTOMESH_EDGE_RELAY_EDGE_HOST || "127.0.0.1";
  const name = isLoopbackHost(host) || host === "0.0.0.0" || host === "::" ? "localhost" : host;
  return `http://${name}:${port ?? (environment[edgePortVariable] || edgePortDefault)}`;
}

/** The environment of the services: ours, and what the launcher decides for them. */
export function serviceEnvironment(launch: Launch, publicUrl: string | undefined): Record<string, string> {
  const environment: Record<string, string> = {};
  for (const [name, value] of Object.entries(launch.environment)) if (value !== undefined) environment[name] = value;
  // The launcher's own way into the database is none of the services'.
  delete environment.DATABASE_URL;
  environment.OCTOMESH_STATE_DIR = launch.options.stateDir;
  environment.OCTOMESH_LOG_LEVEL ??= "warn";
  if (publicUrl !== undefined) environment.OCTOMESH_PUBLIC_URL = publicUrl;
  return environment;
}

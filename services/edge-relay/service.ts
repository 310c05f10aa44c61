import { boolean, ConfigError, cidrList, list, optionalFile, port, readEnvironment, text } from "@octomesh/mesh/config";
import type { CreateService } from "@octomesh/mesh/service";
import { createEdge } from "./edge/edge.ts";
import { createOriginRule, loopbackOrigins, type OriginRule } from "./edge/origin-rule.ts";
import { openServerFiles } from "./edge/server-files.ts";
import { openKitStore } from "./kit-store.ts";
import { createProvisioning } from "./provisioning.ts";
import { registerRoutes } from "./routes.ts";

const certVariable = "OCTOMESH_EDGE_RELAY_EDGE_TLS_CERT_FILE";
const keyVariable = "OCTOMESH_EDGE_RELAY_EDGE_TLS_KEY_FILE";
/** How long requests, and then bundles, have at the end; the runtime gives a service 20 s. */
const graceMs = 5_000;

/** Runs the deployment's own edge, which waits for its kit and keeps it. Pages of this machine may report by default. */
export const createService: CreateService = async (runtime) => {
  const { log, clock, metrics, masterKey, stateDir, trustDomain } = runtime;
  const config = readEnvironment(runtime.env, {
    OCTOMESH_EDGE_RELAY_EDGE_PORT: port(8090),
    OCTOMESH_EDGE_RELAY_EDGE_HOST: text("127.0.0.1"),
    OCTOMESH_EDGE_RELAY_ALLOWED_ORIGIN: list(),
    OCTOMESH_EDGE_RELAY_TRUSTED_PROXIES: cidrList(),
    [certVariable]: optionalFile(),
    [keyVariable]: optionalFile(),
    OCTOMESH_ALLOW_PLAINTEXT: boolean(false),
  });
  const { [certVariable]: certificate, [keyVariable]: key } = config;
  if ((certificate === undefined) !== (key === undefined))
    throw new ConfigError([`${certVariable} and ${keyVariable}: both are expected, or neither`]);
  const edge = await createEdge({
    role: "edge",
    name: "edge",
    host: config.OCTOMESH_EDGE_RELAY_EDGE_HOST,
    port: config.OCTOMESH_EDGE_RELAY_EDGE_PORT,
    allowPlaintext: config.OCTOMESH_ALLOW_PLAINTEXT,
    ...(certificate === undefined || key === undefined
      ? {}
      : { tls: openServerFiles({ certificate, key }, { variables: [certVariable, keyVariable] }) }),
    origins: readOrigins(config.OCTOMESH_EDGE_RELAY_ALLOWED_ORIGIN),
    trustedProxies: config.OCTOMESH_EDGE_RELAY_TRUSTED_PROXIES,
    metrics,
    portVariable: "OCTOMESH_EDGE_RELAY_EDGE_PORT",
    hostVariable: "OCTOMESH_EDGE_RELAY_EDGE_HOST",
    log,
  });
  const provisioning = createProvisioning(edge, openKitStore(stateDir, masterKey), runtime);
  await provisioning.restore();
  return {
    routes: (router) => registerRoutes(router, { provisioning, clock, trustDomain }),
    http: [],
    ports: () => ({ edge: edge.port }),
    start: async () => undefined,
    stop: () => edge.close(graceMs),
  };
};

function readOrigins(origins: readonly string[]): OriginRule {
  if (origins.length === 0) return loopbackOrigins;
  const rule = createOriginRule(origins);
  if (rule !== undefined) return rule;
  throw new ConfigError([
    "OCTOMESH_EDGE_RELAY_ALLOWED_ORIGIN: origins such as https://shop.example are expected, separated by commas, or * alone",
  ]);
}

import { Subject } from "@octomesh/mesh/revocations";
import type { CreateService, Runtime } from "@octomesh/mesh/service";
import { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { createEdgeKeys } from "./edge-keys.ts";
import { openInference } from "./inference/infer.ts";
import { createMeasurementVerifier } from "./landmark-measurements.ts";
import { createMemorySessions } from "./memory-sessions.ts";
import { createVerdictMetrics } from "./metrics.ts";
import { demandNoPersistence } from "./redis-persistence.ts";
import { openRedisSessions } from "./redis-sessions.ts";
import { registerRoutes } from "./routes.ts";
import { rememberMs, type SessionStore } from "./session-store.ts";
import { readVerdictConfig, type VerdictConfig } from "./verdict-config.ts";
import { verdictRoute } from "./verdict-route.ts";
import { createVerdictTokens } from "./verdict-token.ts";

/** Takes signals of edges, judges them as they arrive, and lets backends read the verdicts for some minutes. */
export const createService: CreateService = async (runtime) => {
  const { log, clock } = runtime;
  const config = readVerdictConfig(runtime.env);
  const engine = await openInference({ log });
  const store = await openStore(runtime, config);
  const edgeKeys = createEdgeKeys(runtime.client(CredentialService), (id) =>
    runtime.isRevoked(Subject.EDGE_SIGNING_KEY, id),
  );
  const deps = {
    store,
    edgeKeys,
    verifyMeasurements: createMeasurementVerifier({ edgeKeys, landmarkOrgs: config.landmarkOrgs }),
    engine,
    tokens: createVerdictTokens(runtime.masterKey, runtime.trustDomain),
    metrics: createVerdictMetrics(runtime.metrics, () => store.held()),
    clock,
    ttlMs: config.ttlMs,
  };
  return {
    routes: (router) => registerRoutes(router, deps),
    http: [verdictRoute(deps)],
    start: async () => undefined,
    stop: () => store.close(),
  };
};

async function openStore({ redisUrl, clock, log }: Runtime, config: VerdictConfig): Promise<SessionStore> {
  const limits = {
    maxOfOrganization: config.maxSessionsOfOrganization,
    maxSessions: config.maxSessions,
    rememberMs,
  };
  if (redisUrl === undefined) return createMemorySessions(limits, clock);
  const store = await openRedisSessions(redisUrl, { limits, clock, log });
  try {
    await demandNoPersistence(store.redis, config.isRedisUnpersisted);
    return store;
  } catch (error) {
    await store.close();
    throw error;
  }
}

import { join } from "node:path";
import { duration, readEnvironment } from "@octomesh/mesh/config";
import { trimIdempotency } from "@octomesh/mesh/idempotency";
import { holdLease, type Lease } from "@octomesh/mesh/lease";
import { openOutbox } from "@octomesh/mesh/outbox";
import { createPager } from "@octomesh/mesh/paging";
import type { CreateService, Runtime } from "@octomesh/mesh/service";
import { DeviceGroupService } from "@octomesh/proto/octomesh/device/v1/device_group_service_pb";
import { ArtifactService } from "@octomesh/proto/octomesh/model/v1/artifact_service_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { RolloutService } from "@octomesh/proto/octomesh/rollout/v1/rollout_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { advanceRollouts } from "./advance-rollouts.ts";
import { createDefinitionWatchers } from "./definition-watchers.ts";
import { createDefinitions } from "./definitions.ts";
import { createDemandGroups } from "./demand-groups.ts";
import type { Dependencies } from "./dependencies.ts";
import { openFileBlobStore } from "./file-blob-store.ts";
import { artifactAppendRoute } from "./routes/artifact-append.ts";
import { artifactDownloadRoute } from "./routes/artifact-download.ts";
import { artifactRoutes } from "./routes/artifacts.ts";
import { assignmentRoutes } from "./routes/assignments.ts";
import { modelVersionRoutes } from "./routes/model-versions.ts";
import { modelRoutes } from "./routes/models.ts";
import { rolloutRoutes } from "./routes/rollouts.ts";
import { tenantRoutes } from "./routes/tenant.ts";
import type { Tables } from "./store/tables.ts";
import { sweepArtifacts } from "./sweep-artifacts.ts";
import { createUploadDigests } from "./upload-digests.ts";

/** How often the lease holder looks for steps that are due. */
const advanceIntervalMs = 500;
/** How often it removes what has lapsed. */
const sweepIntervalMs = 60_000;
/** How far back a watcher of definitions can resume. */
const outboxLifetimeMs = 24 * 60 * 60_000;

/** The rollout service: models, versions, artifacts and rollouts, and which device is to run what. */
export const createService: CreateService = async (runtime) => {
  const deps = await openDependencies(runtime);
  const { database, outbox } = deps;
  const stopping = new AbortController();
  let background: Promise<void> = Promise.resolve();
  return {
    routes(router) {
      router.service(ModelService, modelRoutes(deps));
      router.service(ModelVersionService, modelVersionRoutes(deps));
      router.service(ArtifactService, artifactRoutes(deps));
      router.service(RolloutService, rolloutRoutes(deps));
      router.service(AssignmentService, assignmentRoutes(deps));
      router.service(TenantService, tenantRoutes(deps));
    },
    http: [artifactAppendRoute(deps), artifactDownloadRoute(deps)],
    async start() {
      background = holdLease(database, {
        name: "rollout.background",
        ttlMs: 10_000,
        retryMs: 2_000,
        log: deps.log,
        signal: stopping.signal,
        run: (lease, signal) => runBackground(runtime, deps, lease, signal),
      });
    },
    async stop() {
      stopping.abort();
      await background;
      await outbox.close();
      await database.close();
    },
  };
};

async function openDependencies(runtime: Runtime): Promise<Dependencies> {
  const { log, clock, masterKey } = runtime;
  const { OCTOMESH_ROLLOUT_POLL_INTERVAL: pollIntervalMs } = readEnvironment(runtime.env, {
    OCTOMESH_ROLLOUT_POLL_INTERVAL: duration(30_000, 1_000, 24 * 60 * 60_000),
  });
  const blobs = await openFileBlobStore(join(runtime.stateDir, "rollout"));
  const database = await runtime.openDatabase<Tables>(new URL("./migrations/", import.meta.url));
  const outbox = openOutbox(database, { log });
  return {
    database,
    outbox,
    blobs,
    digests: createUploadDigests(),
    definitions: createDefinitions(database, outbox),
    watchers: createDefinitionWatchers(clock),
    pager: createPager(masterKey.derive("rollout/page-tokens")),
    masterKey,
    grantKey: masterKey.derive("rollout/download-grants"),
    pollIntervalMs,
    demandGroups: createDemandGroups(runtime.client(DeviceGroupService), runtime.delegated),
    clock,
    log,
  };
}

/** What one replica at a time does. */
async function runBackground(runtime: Runtime, deps: Dependencies, lease: Lease, signal: AbortSignal): Promise<void> {
  const { database, outbox, log } = deps;
  let nextSweep = 0;
  while (!signal.aborted) {
    try {
      await advanceRollouts(deps, lease, (orgId, action) => runtime.systemCall(orgId, action));
      if (performance.now() >= nextSweep) {
        nextSweep = performance.now() + sweepIntervalMs;
        const swept = await sweepArtifacts(deps, lease);
        if (swept.uploads + swept.artifacts + swept.blobs > 0) log.info(swept, "removed what had lapsed");
        await trimIdempotency(database);
        await outbox.trim({ olderThanMs: outboxLifetimeMs });
      }
    } catch (error) {
      if (!signal.aborted) log.warn({ err: error }, "background work failed, and is tried again");
    }
    await pause(advanceIntervalMs, signal);
  }
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}

import { setTimeout as sleep } from "node:timers/promises";
import { duration, integer, readEnvironment } from "@octomesh/mesh/config";
import { groupCommit } from "@octomesh/mesh/group-commit";
import { holdLease } from "@octomesh/mesh/lease";
import type { CreateService } from "@octomesh/mesh/service";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { TelemetryService } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { createActiveDevices } from "./active-devices.ts";
import { followDefinitions } from "./definitions-follower.ts";
import { defaultMeasureWindow } from "./measure-window.ts";
import { createTelemetryMetrics } from "./metrics.ts";
import { pruneOnce } from "./retention.ts";
import { createRolloutDefinitions } from "./rollout-definitions.ts";
import { tenantRoutes } from "./routes/erase-tenant.ts";
import { listRoutes } from "./routes/list-aggregates.ts";
import { reportRoutes } from "./routes/report-telemetry.ts";
import { type Batch, type BatchOutcome, createStore, type TelemetrySchema } from "./store.ts";
import { createUnknownSubjects } from "./unknown-subjects.ts";

const pruneEveryMs = 10 * 60_000;

/** Takes reports of devices, sums them by minute, cohort and slice, and answers questions about the sums. */
export const createService: CreateService = async (runtime) => {
  const { log, clock, metrics: registry } = runtime;
  const config = readEnvironment(runtime.env, {
    OCTOMESH_TELEMETRY_RETENTION_DAYS: integer(8, 400, 30),
    OCTOMESH_TELEMETRY_FLUSH_DELAY: duration(10, 0, 1000),
  });
  const database = await runtime.openDatabase<TelemetrySchema>(new URL("./migrations/", import.meta.url));
  const store = createStore(database);
  const metrics = createTelemetryMetrics(registry);
  const definitions = createRolloutDefinitions();
  const unknownSubjects = createUnknownSubjects();
  const window = defaultMeasureWindow;
  const commits = groupCommit<Batch, BatchOutcome>({
    maxDelayMs: config.OCTOMESH_TELEMETRY_FLUSH_DELAY,
    maxItems: 256,
    maxPending: 2048,
    flush: (batches) => store.storeBatches(batches),
  });
  const activeDevices = createActiveDevices({
    client: runtime.client(DeviceService),
    delegated: (call) => runtime.delegated(call),
    clock,
  });
  const stopping = new AbortController();
  let loops: Promise<unknown> = Promise.resolve();

  async function prune(signal: AbortSignal): Promise<void> {
    const keepMs = config.OCTOMESH_TELEMETRY_RETENTION_DAYS * 86_400_000;
    while (!signal.aborted) {
      const rows = await pruneOnce({ store, keepMs, window, signal }, clock.now());
      metrics.pruned(rows);
      if (rows > 0) log.info({ rows }, "telemetry past its time was deleted");
      await sleep(pruneEveryMs, undefined, { signal }).catch(() => undefined);
    }
  }

  return {
    routes(router) {
      router.service(TelemetryService, {
        ...reportRoutes({
          activeDevices,
          definitions,
          unknownSubjects,
          window,
          clock,
          metrics,
          submit: commits.submit,
        }),
        ...listRoutes({ store, clock, pageKey: runtime.masterKey.derive("telemetry/pages") }),
      });
      router.service(TenantService, tenantRoutes(store));
    },
    http: [],
    async start() {
      const { signal } = stopping;
      const client = runtime.client(AssignmentService);
      loops = Promise.all([
        followDefinitions({ client, definitions, log, signal }),
        holdLease(database, { name: "telemetry/retention", log, signal, run: (_lease, held) => prune(held) }),
      ]);
    },
    async stop() {
      stopping.abort();
      await commits.close();
      await loops;
      await database.close();
    },
  };
};

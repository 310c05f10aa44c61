import { duration, readEnvironment } from "@octomesh/mesh/config";
import { groupCommit } from "@octomesh/mesh/group-commit";
import { trimIdempotency } from "@octomesh/mesh/idempotency";
import { holdLease } from "@octomesh/mesh/lease";
import { openOutbox } from "@octomesh/mesh/outbox";
import { createPager } from "@octomesh/mesh/paging";
import type { CreateService, Runtime } from "@octomesh/mesh/service";
import { createTurns } from "@octomesh/mesh/turns";
import { DeviceGroupService } from "@octomesh/proto/octomesh/device/v1/device_group_service_pb";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { Gauge } from "prom-client";
import { openDesiredStates } from "./desired-states.ts";
import { openDeviceFacts } from "./device-facts.ts";
import { type DefinitionsFollower, followDefinitions } from "./follow-definitions.ts";
import { followDeviceChanges } from "./follow-device-changes.ts";
import { openManifestKeys } from "./manifest-keys.ts";
import { repeatEvery } from "./repeat-every.ts";
import { desiredStateRoutes } from "./routes/desired-states.ts";
import { deviceGroupRoutes } from "./routes/device-groups.ts";
import { deviceRoutes } from "./routes/devices.ts";
import { heartbeatRoutes } from "./routes/heartbeats.ts";
import { observedStateRoutes } from "./routes/observed-states.ts";
import { registrationRoutes } from "./routes/registration.ts";
import { tenantRoutes } from "./routes/tenant.ts";
import type { ServiceContext } from "./service-context.ts";
import { openStore } from "./store.ts";
import type { DeviceRegistryTables } from "./tables.ts";

/** Lists and counts under way at a time, of the pool's eight connections. */
const readLimits = { total: 4, perOwner: 2, maxWaiting: 32 };
const housekeepingMs = 600_000;
/** Device changes are followed by processes that are up: one that was away longer reads everything anew. */
const outboxLifetimeMs = 3_600_000;

/** Makes the service: devices, groups, presence, desired and observed state. */
export const createService: CreateService = async (runtime) => {
  const { log, clock } = runtime;
  const config = readDeviceRegistryConfig(runtime.env);
  const database = await runtime.openDatabase<DeviceRegistryTables>(new URL("./migrations/", import.meta.url));
  const store = openStore(database, clock);
  const outbox = openOutbox(database, { log });
  const stopping = new AbortController();
  const assignments = runtime.client(AssignmentService);

  let follower: DefinitionsFollower | undefined;
  const desiredStates = openDesiredStates({
    client: assignments,
    facts: openDeviceFacts({ load: (orgId, deviceIds) => store.devices.facts(orgId, deviceIds) }),
    clock,
    log,
    pollIntervalMs: config.pollIntervalMs,
    isFollowing: () => follower?.isFollowing() ?? false,
  });
  watchesGauge(runtime, desiredStates.watchers);

  const context: ServiceContext = {
    database,
    store,
    clock,
    pager: createPager(runtime.masterKey.derive("device-registry/page-tokens")),
    reads: createTurns(readLimits),
    desiredStates,
    manifestKeys: openManifestKeys(runtime.client(ModelVersionService), clock),
    heartbeats: groupCommit({
      maxDelayMs: 10,
      maxItems: 1000,
      maxPending: 20_000,
      flush: (items) => store.presence.record(items),
    }),
    reports: groupCommit({
      maxDelayMs: 10,
      maxItems: 100,
      maxPending: 2_000,
      flush: (items) => store.observedStates.record(items),
    }),
    credentials: runtime.client(DeviceCredentialService),
    delegated: (call) => runtime.delegated(call),
    heartbeatIntervalMs: config.heartbeatIntervalMs,
  };

  const keepHouse = async (): Promise<void> => {
    const count = await store.registrations.sweep();
    if (count > 0) log.info({ count }, "abandoned registrations cleared away");
    await trimIdempotency(database);
    await outbox.trim({ olderThanMs: outboxLifetimeMs });
  };

  let loops: Promise<unknown> = Promise.resolve();

  return {
    routes(router) {
      router.service(DeviceService, {
        ...registrationRoutes(context),
        ...deviceRoutes(context),
        ...heartbeatRoutes(context),
        ...desiredStateRoutes(context),
        ...observedStateRoutes(context),
      });
      router.service(DeviceGroupService, deviceGroupRoutes(context));
      router.service(TenantService, tenantRoutes(context));
    },
    http: [],
    async start() {
      const { signal } = stopping;
      follower = followDefinitions({
        client: assignments,
        log,
        signal,
        onChange: desiredStates.definitionsChanged,
        onGap: desiredStates.everythingChanged,
      });
      const changes = followDeviceChanges({
        outbox,
        log,
        signal,
        onChange: desiredStates.devicesChanged,
        onGap: desiredStates.everythingChanged,
      });
      const housekeeping = holdLease(database, {
        name: "housekeeping",
        log,
        signal,
        run: (_, held) => repeatEvery({ everyMs: housekeepingMs, signal: held, log, work: keepHouse }),
      });
      loops = Promise.all([follower.done, changes, housekeeping]);
    },
    async stop() {
      stopping.abort();
      desiredStates.stop();
      await Promise.all([context.heartbeats.close(), context.reports.close()]);
      await outbox.close();
      await loops;
      await database.close();
    },
  };
};

/** What this service reads from the environment. Durations in milliseconds. */
export interface DeviceRegistryConfig {
  /** `OCTOMESH_DEVICE_REGISTRY_HEARTBEAT_INTERVAL`: how often devices say that they are alive. Default 60 s. */
  readonly heartbeatIntervalMs: number;
  /** `OCTOMESH_DEVICE_REGISTRY_POLL_INTERVAL`: how often devices without a stream ask what to run. Default 30 s. */
  readonly pollIntervalMs: number;
}

/**
 * Reads the configuration. With the defaults a device makes three calls a minute, far below its limit of a hundred;
 * intervals below two seconds are refused, for then it could not keep to it.
 */
export function readDeviceRegistryConfig(env: Readonly<Record<string, string | undefined>>): DeviceRegistryConfig {
  const read = readEnvironment(env, {
    OCTOMESH_DEVICE_REGISTRY_HEARTBEAT_INTERVAL: duration(60_000, 2_000, 3_600_000),
    OCTOMESH_DEVICE_REGISTRY_POLL_INTERVAL: duration(30_000, 2_000, 3_600_000),
  });
  return {
    heartbeatIntervalMs: read.OCTOMESH_DEVICE_REGISTRY_HEARTBEAT_INTERVAL,
    pollIntervalMs: read.OCTOMESH_DEVICE_REGISTRY_POLL_INTERVAL,
  };
}

function watchesGauge(runtime: Runtime, watchers: () => number): void {
  new Gauge({
    name: "octomesh_desired_state_watches",
    help: "Devices that follow their desired state by a stream or a long poll",
    registers: [runtime.metrics],
    collect() {
      this.set(watchers());
    },
  });
}

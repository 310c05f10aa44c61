import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { durationFromMs, durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import type { DesiredState } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import { Device_State, type Platform as DevicePlatform } from "@octomesh/proto/octomesh/device/v1/device_pb";
import { DeviceService, type HeartbeatResponse } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { LatencyReport_Operation } from "@octomesh/proto/octomesh/telemetry/v1/latency_report_pb";
import { RolloutProgress_Step as Step } from "@octomesh/proto/octomesh/telemetry/v1/rollout_progress_pb";
import { ReportTelemetryRequest_ReportSchema } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { backoffMs, jitteredMs } from "../backoff.ts";
import { createClientsOn, originOf, type ServiceClients } from "../clients.ts";
import { bearer } from "../credential.ts";
import type { HttpClient, Platform, ProtocolOptions } from "../platform/platform.ts";
import { isReason, reasonOf, retryAfterMsOf } from "../reason.ts";
import { type ResilienceOptions, resilientTransport } from "../resilient-transport.ts";
import { singleFlight } from "../single-flight.ts";
import { wait } from "../wait.ts";
import type { VerifiedVersion } from "./activation.ts";
import type { ArtifactStore } from "./artifact-store.ts";
import { randomText, toBase64 } from "./bytes.ts";
import { contractMinor, sdkVersion } from "./contract-minor.ts";
import { createCredentialKeeper, withCredential } from "./credential-keeper.ts";
import { DeviceError, isDeviceError } from "./device-error.ts";
import type { DeviceRecord, DeviceStore } from "./device-store.ts";
import { createEmitter } from "./emitter.ts";
import { type Following, type FollowMode, followDesiredState } from "./follow-desired-state.ts";
import { memoryArtifacts } from "./memory-artifacts.ts";
import { createModelKeeper, type InstalledModel } from "./model-keeper.ts";
import { createMutex } from "./mutex.ts";
import { openTelemetryQueue, type TelemetryQueue } from "./telemetry-queue.ts";
import { memoryTelemetry, type TelemetryStorage } from "./telemetry-storage.ts";

/** What a device says of itself when it registers. All may be left out. */
export interface AboutDevice {
  /** Name for people. */
  displayName?: string;
  /** Default: the platform that this runs on. */
  platform?: DevicePlatform;
  /** Default: the version of the system that this runs on. */
  osVersion?: string;
  appVersion?: string;
  manufacturer?: string;
  hardwareModel?: string;
  /** Labels by which rollouts select devices. */
  labels?: Record<string, string>;
}

/** Settings of a device client that are the same everywhere. */
export interface DeviceClientOptions extends ProtocolOptions, Pick<ResilienceOptions, "timeoutMs" | "retry"> {
  /** The public origin of the mesh, such as `https://mesh.example.com`. */
  baseUrl: string;
  /** The identifier that the device gives itself, unique in its organisation, 1 to 128 characters. */
  deviceIdentifier: string;
  /** The token to register with, or what fetches one from the app's backend. Needed for the first registration only. */
  bootstrapToken?: string | (() => Promise<string>);
  /** Where the credential is kept. */
  store: DeviceStore;
  /** Where artifacts are kept. Default: in memory. */
  artifacts?: ArtifactStore;
  /** Where telemetry waits. Default: in memory. */
  telemetry?: TelemetryStorage;
  /** How many bytes of telemetry may wait, at least 64 KiB. Default 4 MiB. */
  telemetryMaxBytes?: number;
  /** How often waiting telemetry is sent, in milliseconds. Default 15,000. */
  telemetryIntervalMs?: number;
  /** What the device says of itself. */
  about?: AboutDevice;
  /** How it hears of its desired state. Default `stream`, which falls back to polling by itself. */
  follow?: "stream" | "poll";
  /** How long one poll waits for a change, in milliseconds, 60,000 at most. Default 25,000. */
  pollWaitMs?: number;
  /** Largest artifact that is taken, in bytes. Default: 2 GiB in Node, 256 MiB in browsers. */
  maxArtifactBytes?: number;
  /** Tries a version before it becomes active. A throw keeps the version before, and is reported as FAILURE_LOAD. */
  load?(model: InstalledModel): Promise<void>;
  /** Carries calls in place of a connection to `baseUrl`: any Connect transport. */
  transport?: Transport;
  /** Fetches artifacts in place of the platform's HTTP. */
  http?: HttpClient;
  /** How long registration goes on against 429 and an unavailable mesh, in milliseconds. Default 600,000. */
  registerTimeoutMs?: number;
  /** The clock, milliseconds since the Unix epoch. */
  now?: () => number;
  /** Random numbers in [0, 1), for spreading. */
  random?: () => number;
}

/** What a device client tells its listeners. */
export interface DeviceEvents {
  /** The device registered; `created` is false where the store held a registration. */
  registered: { deviceId: string; orgId: string; created: boolean };
  /** The credential was renewed. */
  refreshed: { expireTimeMs: number };
  /** A heartbeat was answered. */
  heartbeat: { serverTimeMs: number; intervalMs: number };
  /** How the device hears of its desired state. */
  connection: { mode: FollowMode };
  /** The desired state changed. */
  desired: { etag: string; models: { modelId: string; modelName: string; version: string; versionId: string }[] };
  /** A download begins, or continues at `offset`. */
  downloading: DownloadDetail & { resumed: boolean };
  /** Bytes came. */
  progress: DownloadDetail;
  /** An artifact is complete and verified. `receivedBytes` came over the network. */
  downloaded: { modelId: string; version: string; receivedBytes: number; resumed: boolean; durationMs: number };
  /** A version is active. `downloaded` is false where its bytes were kept from before: a fall-back. */
  activated: { model: InstalledModel; from: VerifiedVersion | undefined; downloaded: boolean; durationMs: number };
  /** A model is not for this device any more. */
  removed: { modelId: string; version: string };
  /** A version did not become active. What was active stays. */
  refused: { modelId: string; version: string; versionId: string; error: DeviceError };
  /** The mesh took the device's account of what it runs. */
  observed: { sequence: bigint };
  /** The mesh took a batch of telemetry. */
  "telemetry-sent": { reports: number; duplicate: boolean };
  /** Reports were lost: for want of room, or because the mesh will not take them. */
  "telemetry-dropped": { reports: number };
  /** The mesh asked to wait. */
  throttled: { operation: string; retryAfterMs: number };
  /** The device waits for a member's approval. */
  "awaiting-approval": Record<string, never>;
  /** The mesh has withdrawn the credential. Everything has stopped for good. */
  revoked: Record<string, never>;
  /** Something failed that will be tried again. */
  error: { operation: string; error: unknown };
  /** The client was closed. */
  closed: Record<string, never>;
}

/** A download under way. */
export interface DownloadDetail {
  modelId: string;
  version: string;
  /** How many bytes are there. */
  offset: number;
  sizeBytes: number;
}

/** What a device client has done since it was made. */
export interface DeviceStats {
  heartbeats: number;
  refreshes: number;
  throttled: number;
  errors: number;
  downloads: number;
  downloadedBytes: number;
  resumedDownloads: number;
  activations: number;
  /** Activations of a version whose bytes were kept: nothing was fetched. */
  activationsWithoutDownload: number;
  refusedVersions: number;
  sentBatches: number;
  sentReports: number;
  /** Reports that wait. */
  queuedReports: number;
  queuedBytes: number;
  /** Reports that were lost since the telemetry log began. */
  droppedReports: number;
}

/** Where a device client is in its life. */
export type DeviceClientState = "idle" | "registering" | "running" | "awaiting-approval" | "revoked" | "closed";

/** A report of telemetry: one of the contract's four kinds. */
export type TelemetryReport = MessageInitShape<typeof ReportTelemetryRequest_ReportSchema>;

/** A device: registers, keeps its credential and its models, and reports. */
export interface DeviceClient {
  /** Random name of this run of the program. */
  readonly bootId: string;
  /** Where the client is in its life. */
  readonly state: DeviceClientState;
  /** Id of the device, `dev_…`; undefined before it registered. */
  readonly deviceId: string | undefined;
  /** The organisation, `org_…`; undefined before it registered. */
  readonly orgId: string | undefined;
  /** Typed clients with the device's credential. */
  readonly clients: Pick<ServiceClients, "devices" | "telemetry" | "sessions">;
  /**
   * Registers, or takes the registration that the store holds. Waits as the mesh asks when it is throttled, and repeats
   * what got no answer with the same client key. `reenrol` registers anew where the store says that the credential was
   * withdrawn (a client that saw it happen has stopped: make another).
   *
   * Throws ConnectError for a refusal, DeviceError NOT_REGISTERED, IDENTIFIER_MISMATCH, REVOKED, CLOSED or the store's.
   */
  register(options?: { signal?: AbortSignal; reenrol?: boolean }): Promise<{
    deviceId: string;
    orgId: string;
    created: boolean;
  }>;
  /** Registers if need be, and then runs until `close()`: heartbeats, desired state, telemetry. */
  start(options?: { signal?: AbortSignal; reenrol?: boolean }): Promise<void>;
  /** Renews the credential now. */
  refresh(): Promise<void>;
  /** Says now that the device is alive. */
  heartbeat(): Promise<HeartbeatResponse>;
  /** Asks now for the desired state, and resolves when it is applied. */
  sync(options?: { signal?: AbortSignal }): Promise<void>;
  /** What is active. */
  models(): InstalledModel[];
  /** One active model, by its name or id. */
  model(nameOrId: string): InstalledModel | undefined;
  /** The bytes of an active model, verified as they are read. */
  open(nameOrId: string): Promise<Uint8Array>;
  /** Queues reports. They are kept when it resolves, as surely as the telemetry storage keeps things. */
  report(...reports: TelemetryReport[]): Promise<void>;
  /** Sends what is queued, now. Throws where the mesh does not take it; it stays queued. */
  flush(): Promise<void>;
  /** What was done so far. */
  stats(): DeviceStats;
  /** Listens to an event; the answer stops listening. */
  on<Name extends keyof DeviceEvents>(event: Name, listener: (detail: DeviceEvents[Name]) => void): () => void;
  /** Ends everything, and keeps what is to be kept. */
  close(): Promise<void>;
}

const maxBackoff = { baseDelayMs: 1_000, maxDelayMs: 300_000 };

/** Makes a device client on a platform. `createDeviceClient` of the package's entry points has the platform filled in. */
export function createDeviceClientOn<Options>(
  platform: Platform<Options>,
  options: DeviceClientOptions & Options,
): DeviceClient {
  const { store, deviceIdentifier } = options;
  if (deviceIdentifier.length < 1 || deviceIdentifier.length > 128) {
    throw new TypeError("deviceIdentifier has 1 to 128 characters");
  }
  const baseUrl = originOf(options.baseUrl);
  const now = options.now ?? Date.now;
  const random = options.random ?? Math.random;
  const bootId = randomText();
  const ended = platform.abortController();
  const { signal } = ended;
  const connection = options.transport
    ? { transport: options.transport, close: () => {} }
    : platform.connect(baseUrl, options);
  const shared = { timeoutMs: options.timeoutMs, retry: options.retry, random };
  const emitter = createEmitter<DeviceEvents>((error) => queueMicrotask(() => reportThrow(error)));
  const { emit } = emitter;
  const stats = {
    heartbeats: 0,
    refreshes: 0,
    throttled: 0,
    errors: 0,
    downloads: 0,
    downloadedBytes: 0,
    resumedDownloads: 0,
    activations: 0,
    activationsWithoutDownload: 0,
    refusedVersions: 0,
    sentBatches: 0,
    sentReports: 0,
  };
  let state: DeviceClientState = "idle";
  let heartbeatSequence = 0n;
  let observedSequence = 0n;
  let desired: DesiredState | undefined;
  let following: Following | undefined;
  let queue: TelemetryQueue | undefined;
  let loops: Promise<unknown>[] = [];
  let isReady = false;
  let isClosed = false;

  const keeper = createCredentialKeeper({
    store,
    bare: resilientTransport(connection.transport, shared),
    now,
    random,
    onRefreshed({ expireTimeMs }) {
      stats.refreshes++;
      emit("refreshed", { expireTimeMs });
    },
    onRevoked() {
      state = "revoked";
      ended.abort(new DeviceError("REVOKED", "the mesh has withdrawn this device's credential"));
      emit("revoked", {});
    },
    onError: (error) => failed("refresh", error),
  });
  const clients = createClientsOn(platform, {
    ...options,
    ...shared,
    transport: connection.transport,
    credential: keeper,
    onRetry: ({ method, delayMs, error }) => {
      if (error.code === Code.ResourceExhausted) throttled(method, delayMs);
    },
  });

  function failed(operation: string, error: unknown) {
    if (signal.aborted) return;
    stats.errors++;
    emit("error", { operation, error });
  }

  function throttled(operation: string, retryAfterMs: number) {
    stats.throttled++;
    emit("throttled", { operation, retryAfterMs });
  }

  /** What a loop does about a failed call. Answers how long to wait before the next, in milliseconds. */
  function recover(operation: string, error: unknown, failures: number): number {
    if (signal.aborted) return 0;
    if (isReason(error, "DEVICE_NOT_ACTIVE")) {
      if (state === "running") {
        state = "awaiting-approval";
        emit("awaiting-approval", {});
      }
      return jitteredMs(keeper.registration()?.heartbeatIntervalMs ?? 30_000, random);
    }
    failed(operation, error);
    const asked = retryAfterMsOf(error);
    if (asked !== undefined && error instanceof ConnectError && error.code === Code.ResourceExhausted) {
      throttled(operation, asked);
    }
    return Math.max(asked ?? 0, backoffMs(failures, maxBackoff, random));
  }

  function registered() {
    const registration = keeper.registration();
    if (registration === undefined) throw new DeviceError("NOT_REGISTERED", "the device is not registered");
    return registration;
  }

  function assertAlive() {
    if (state === "revoked") throw new DeviceError("REVOKED", "the mesh has withdrawn this device's credential");
    if (state === "closed") throw new DeviceError("CLOSED", "the client is closed");
  }

  // --- models

  let downloadAuthorization = "";
  const artifacts = options.artifacts ?? memoryArtifacts();
  const models = createModelKeeper({
    store: artifacts,
    http: options.http ?? platform.http(options),
    platform,
    baseUrl,
    maxArtifactBytes: options.maxArtifactBytes ?? platform.maxArtifactBytes,
    registration: registered,
    async authorization(refused) {
      // Which of the two was refused, the credential or the grant, the answer to 403 does not need to say.
      if (refused === 401) await keeper.renew(downloadAuthorization, connection.transport, "CREDENTIAL_EXPIRED");
      downloadAuthorization = (await keeper.authorization(connection.transport)) ?? "";
      return downloadAuthorization;
    },
    async refetch(modelId, abort) {
      const fresh = await poll("", 0, abort);
      return fresh.models.find((model) => model.modelId === modelId);
    },
    load: options.load,
    now,
    events: {
      offered: (model) => progress(model, Step.OFFERED, {}),
      downloading: (model, { offset, sizeBytes, resumed }) =>
        emit("downloading", { modelId: model.modelId, version: model.version, offset, sizeBytes, resumed }),
      progress: (model, { offset, sizeBytes }) =>
        emit("progress", { modelId: model.modelId, version: model.version, offset, sizeBytes }),
      throttled: (retryAfterMs) => throttled("download", retryAfterMs),
      downloaded(model, { receivedBytes, resumed, durationMs: took }) {
        stats.downloads++;
        stats.downloadedBytes += receivedBytes;
        if (resumed) stats.resumedDownloads++;
        const { modelId, version } = model;
        emit("downloaded", { modelId, version, receivedBytes, resumed, durationMs: took });
        progress(model, Step.DOWNLOADED, { tookMs: took, bytes: receivedBytes });
        progress(model, Step.VERIFIED, {});
        tell({
          kind: {
            case: "latency",
            value: {
              measureTime: timestampFromMs(now()),
              modelId,
              versionId: model.versionId,
              operation: LatencyReport_Operation.DOWNLOAD,
              milliseconds: [Math.min(took, 3_600_000)],
            },
          },
        });
      },
      activated(model, { from, downloaded, durationMs: took }) {
        stats.activations++;
        if (!downloaded) stats.activationsWithoutDownload++;
        const back = !downloaded && from !== undefined && from.versionId !== model.versionId;
        if (back) progress({ ...from, modelId: model.modelId }, Step.ROLLED_BACK, {});
        progress(model, Step.ACTIVATED, { tookMs: took });
        emit("activated", { model, from, downloaded, durationMs: took });
      },
      removed: ({ modelId, active }) => emit("removed", { modelId, version: active.version }),
      failed(model, error) {
        stats.refusedVersions++;
        const { modelId, version, versionId } = model;
        progress(model, stepOfFailure(error), {});
        emit("refused", { modelId, version, versionId, error });
      },
      observed: () => void reportObserved(),
    },
  });

  const applyInTurn = createMutex();
  let applying: AbortController | undefined;
  let again: ReturnType<typeof setTimeout> | undefined;
  let appliedEtag: string | undefined;

  /** Applies the newest desired state: what is being applied of an older one is broken off. */
  function apply(next: DesiredState): Promise<void> {
    desired = next;
    applying?.abort(new DeviceError("CLOSED", "the desired state changed"));
    return applyInTurn(async () => {
      if (desired !== next || signal.aborted) return;
      clearTimeout(again);
      const attempt = platform.abortController();
      applying = attempt;
      try {
        const retryAt = await models.apply(next.models, AbortSignal.any([signal, attempt.signal]));
        if (retryAt !== undefined) {
          const delayMs = Math.min(Math.max(100, retryAt - now()), 2_147_483_647);
          again = setTimeout(() => void (desired === next && apply(next)), delayMs);
        }
        if (appliedEtag !== next.etag) {
          appliedEtag = next.etag;
          await reportObserved();
        }
      } catch (error) {
        if (attempt.signal.aborted || signal.aborted) return;
        failed("apply", error);
        // The store itself failed, a full disk for one: the models stay as they are, and it is tried again.
        again = setTimeout(() => void (desired === next && apply(next)), jitteredMs(30_000, random));
      } finally {
        if (applying === attempt) applying = undefined;
      }
    });
  }

  let isObservedStale = false;
  let told: string | undefined;
  const sendObserved = singleFlight(async () => {
    for (let failures = 1; isObservedStale && !signal.aborted; ) {
      isObservedStale = false;
      const observed = models.observed();
      if (JSON.stringify(observed) === told) continue;
      const sequence = observedSequence++;
      try {
        await clients.devices.reportObservedState(
          { id: registered().deviceId, bootId, sequence, models: observed },
          { signal },
        );
        failures = 1;
        told = JSON.stringify(observed);
        emit("observed", { sequence });
      } catch (error) {
        const pauseMs = recover("observed-state", error, failures++);
        isObservedStale = true;
        await wait(pauseMs, signal).catch(() => {});
      }
    }
  });

  function reportObserved(): Promise<void> {
    if (keeper.registration() === undefined) return Promise.resolve();
    isObservedStale = true;
    return sendObserved();
  }

  // --- desired state

  function poll(etag: string, waitMs: number, abort: AbortSignal) {
    return clients.devices.getDesiredState(
      { id: registered().deviceId, etag, ...(waitMs > 0 ? { wait: durationFromMs(waitMs) } : {}) },
      { signal: abort, timeoutMs: waitMs + (options.timeoutMs ?? 30_000) },
    );
  }

  function onDesired(next: DesiredState) {
    if (state === "awaiting-approval") state = "running";
    emit("desired", {
      etag: next.etag,
      models: next.models.map(({ modelId, modelName, version, versionId }) => ({
        modelId,
        modelName,
        version,
        versionId,
      })),
    });
    void apply(next);
  }

  // --- heartbeats

  async function heartbeat(): Promise<HeartbeatResponse> {
    assertAlive();
    await keeper.persist().catch((error) => failed("store", error));
    const answer = await clients.devices.heartbeat(
      { id: registered().deviceId, bootId, sequence: heartbeatSequence++ },
      { signal },
    );
    stats.heartbeats++;
    if (state === "awaiting-approval") state = "running";
    const intervalMs = intervalOf(answer.heartbeatInterval);
    const serverTimeMs = answer.serverTime === undefined ? 0 : Number(answer.serverTime.seconds) * 1000;
    emit("heartbeat", { serverTimeMs, intervalMs });
    following?.check(answer.desiredStateEtag);
    return answer;
  }

  function intervalOf(duration: HeartbeatResponse["heartbeatInterval"]): number {
    const ms = duration === undefined ? registered().heartbeatIntervalMs : durationMs(duration);
    return Math.min(Math.max(ms, 1_000), 3_600_000);
  }

  async function beat() {
    for (let failures = 0; !signal.aborted; ) {
      let pauseMs: number;
      try {
        pauseMs = jitteredMs(intervalOf((await heartbeat()).heartbeatInterval), random);
        failures = 0;
      } catch (error) {
        pauseMs = recover("heartbeat", error, ++failures);
      }
      await wait(pauseMs, signal).catch(() => {});
    }
  }

  // --- telemetry

  const openQueue = singleFlight(async () => {
    queue ??= await openTelemetryQueue({
      storage: options.telemetry ?? memoryTelemetry(),
      bootId,
      maxBytes: options.telemetryMaxBytes,
      onDropped: (reports) => emit("telemetry-dropped", { reports }),
    });
    return queue;
  });

  async function report(...reports: TelemetryReport[]): Promise<void> {
    if (state === "closed") assertAlive();
    const encoded = reports.map((init) =>
      toBinary(ReportTelemetryRequest_ReportSchema, create(ReportTelemetryRequest_ReportSchema, init)),
    );
    await (await openQueue()).append(encoded);
  }

  function tell(init: TelemetryReport) {
    report(init).catch((error) => failed("telemetry", error));
  }

  function progress(
    model: { modelId: string; versionId: string; rolloutId: string },
    step: Step,
    measured: { tookMs?: number; bytes?: number },
  ) {
    if (!/^rol_[a-z2-7]{26}$/.test(model.rolloutId)) return;
    const { modelId, versionId, rolloutId } = model;
    const tookMs = Math.min(measured.tookMs ?? 0, 2_592_000_000);
    tell({
      kind: {
        case: "rolloutProgress",
        value: {
          measureTime: timestampFromMs(now()),
          rolloutId,
          modelId,
          versionId,
          step,
          duration: durationFromMs(Math.round(tookMs)),
          bytes: BigInt(measured.bytes ?? 0),
        },
      },
    });
  }

  const flush = singleFlight(async () => {
    const open = await openQueue();
    for (;;) {
      assertAlive();
      const batch = await open.next();
      if (batch === undefined) return;
      try {
        const answer = await clients.telemetry.reportTelemetry(
          {
            id: registered().deviceId,
            bootId: batch.bootId,
            sequence: batch.sequence,
            contractMinor,
            reports: batch.reports.map((bytes) => fromBinary(ReportTelemetryRequest_ReportSchema, bytes)),
          },
          { signal },
        );
        await open.acknowledge();
        stats.sentBatches++;
        stats.sentReports += batch.reports.length;
        emit("telemetry-sent", { reports: batch.reports.length, duplicate: answer.duplicate });
      } catch (error) {
        // What the batch holds is not taken, now or later; anything else may change.
        if (!(error instanceof ConnectError) || error.code !== Code.InvalidArgument) throw error;
        const dropped = await open.refuse();
        if (dropped > 0) {
          const reason = reasonOf(error) ?? "unknown";
          failed("telemetry", new DeviceError("TELEMETRY_REFUSED", `a report is refused: ${reason}`, { cause: error }));
          emit("telemetry-dropped", { reports: dropped });
        }
      }
    }
  });

  async function send() {
    const intervalMs = options.telemetryIntervalMs ?? 15_000;
    for (let failures = 0; !signal.aborted; ) {
      let pauseMs = jitteredMs(intervalMs, random);
      try {
        await flush();
        failures = 0;
      } catch (error) {
        pauseMs = Math.max(pauseMs, recover("telemetry", error, ++failures));
      }
      await wait(pauseMs, signal).catch(() => {});
    }
  }

  // --- life

  /** One attempt at registering, under the store's lock. Answers undefined where it is to be repeated. */
  async function tryRegister(token: string | undefined, reenrol: boolean, abort: AbortSignal) {
    return await store.exclusively(async () => {
      let record: DeviceRecord | undefined = await store.load();
      if (record !== undefined && record.deviceIdentifier !== deviceIdentifier) {
        throw new DeviceError("IDENTIFIER_MISMATCH", `the store belongs to device ${record.deviceIdentifier}`);
      }
      if (record?.revoked) {
        if (!reenrol) throw new DeviceError("REVOKED", "the mesh has withdrawn this device's credential");
        record = undefined;
      }
      if (record?.registration !== undefined) {
        keeper.adopt(record);
        return { ...identify(record.registration), created: false, isActive: true };
      }
      if (token === undefined) {
        throw new DeviceError("NOT_REGISTERED", "the device is not registered, and there is no bootstrap token");
      }
      if (record === undefined) {
        // Kept before the first attempt: it is what makes a repeated attempt the same one.
        record = { deviceIdentifier, clientKey: randomText() };
        await store.save(record);
      }
      const registering = createClient(
        DeviceService,
        resilientTransport(connection.transport, { ...shared, retry: false, credential: bearer(token) }),
      );
      const { about = {} } = options;
      const answer = await registering.registerDevice(
        {
          deviceIdentifier,
          displayName: about.displayName ?? "",
          platform: about.platform ?? platform.devicePlatform,
          osVersion: about.osVersion ?? platform.osVersion,
          sdkVersion,
          appVersion: about.appVersion ?? "",
          manufacturer: about.manufacturer ?? "",
          hardwareModel: about.hardwareModel ?? "",
          labels: about.labels ?? {},
          clientKey: record.clientKey,
        },
        { signal: abort },
      );
      if (answer.credential === undefined) throw new ConnectError("the answer holds no credential", Code.Internal);
      const registration = withCredential(
        {
          manifestKeys: answer.manifestKeys.map(({ id, publicKey }) => ({ id, publicKey: toBase64(publicKey) })),
          heartbeatIntervalMs: answer.heartbeatInterval === undefined ? 30_000 : durationMs(answer.heartbeatInterval),
        },
        answer.credential,
      );
      const next = { ...record, registration };
      await store.save(next);
      keeper.adopt(next);
      const isActive = answer.device?.state !== Device_State.AWAITING_APPROVAL;
      return { ...identify(registration), created: true, isActive };
    });
  }

  async function register(settings: { signal?: AbortSignal; reenrol?: boolean } = {}) {
    assertAlive();
    const abort = settings.signal ? AbortSignal.any([signal, settings.signal]) : signal;
    const deadline = performance.now() + (options.registerTimeoutMs ?? 600_000);
    state = "registering";
    try {
      for (let failures = 1; ; failures++) {
        try {
          const stored = await store.load();
          const isNeeded = stored?.registration === undefined || stored.revoked === true;
          const { bootstrapToken } = options;
          const fetchToken = async () =>
            typeof bootstrapToken === "function" ? await bootstrapToken() : bootstrapToken;
          const token = isNeeded ? await fetchToken() : undefined;
          const outcome = await tryRegister(token, settings.reenrol === true, abort);
          state = outcome.isActive ? "idle" : "awaiting-approval";
          const { isActive, ...identity } = outcome;
          emit("registered", identity);
          if (!isActive) emit("awaiting-approval", {});
          return identity;
        } catch (error) {
          if (abort.aborted || !(error instanceof ConnectError)) throw error;
          const asked = retryAfterMsOf(error);
          const isThrottled = error.code === Code.ResourceExhausted && asked !== undefined;
          const mayHelp = isThrottled || error.code === Code.Unavailable || error.code === Code.DeadlineExceeded;
          const pauseMs = Math.max(asked ?? 0, backoffMs(failures, { baseDelayMs: 250, maxDelayMs: 30_000 }, random));
          if (!mayHelp || performance.now() + pauseMs > deadline) throw error;
          if (isThrottled) throttled("register", asked);
          else failed("register", error);
          await wait(pauseMs + random() * 250, abort);
        }
      }
    } catch (error) {
      if (state === "registering") state = isDeviceError(error, "REVOKED") ? "revoked" : "idle";
      throw error;
    }
  }

  async function run(settings: { signal?: AbortSignal; reenrol?: boolean } = {}): Promise<void> {
    assertAlive();
    if (loops.length > 0) return;
    if (keeper.registration() === undefined) await register(settings);
    await ready();
    if (state === "idle") state = "running";
    following = followDesiredState({
      follow: options.follow ?? "stream",
      pollWaitMs: options.pollWaitMs,
      watch: (etag, abort, onOpen) =>
        clients.devices.watchDesiredState(
          { id: registered().deviceId, etag },
          { signal: abort, timeoutMs: 0, onHeader: onOpen },
        ),
      poll,
      onState: onDesired,
      onMode: (mode) => emit("connection", { mode }),
      onError: async (error) => {
        await wait(recoverFollowing(error), signal).catch(() => {});
      },
      signal,
      random,
    });
    loops = [following.done, beat(), send()];
    // The account of this boot, also where nothing is to change.
    void reportObserved();
  }

  function recoverFollowing(error: unknown): number {
    // The follower spaces its own attempts; only approval makes it wait longer.
    const pauseMs = recover("desired-state", error, 1);
    return isReason(error, "DEVICE_NOT_ACTIVE") ? pauseMs : 0;
  }

  const ready = singleFlight(async () => {
    if (isReady) return;
    await models.open();
    await openQueue();
    isReady = true;
  });

  const close = singleFlight(async () => {
    if (isClosed) return;
    isClosed = true;
    if (!signal.aborted) ended.abort(new DeviceError("CLOSED", "the client is closed"));
    clearTimeout(again);
    await Promise.allSettled([...loops, applyInTurn(async () => {}), sendObserved()]);
    await Promise.allSettled([queue?.close(), isReady ? models.close() : undefined, keeper.persist()]);
    clients.close();
    connection.close();
    if (state !== "revoked") state = "closed";
    emit("closed", {});
  });

  return {
    bootId,
    get state() {
      return state;
    },
    get deviceId() {
      return keeper.registration()?.deviceId;
    },
    get orgId() {
      return keeper.registration()?.orgId;
    },
    clients: { devices: clients.devices, telemetry: clients.telemetry, sessions: clients.sessions },
    register,
    start: run,
    async refresh() {
      assertAlive();
      await keeper.refresh();
    },
    heartbeat,
    async sync(settings = {}) {
      assertAlive();
      await ready();
      const abort = settings.signal ? AbortSignal.any([signal, settings.signal]) : signal;
      const next = await poll("", 0, abort);
      await apply(next);
      signal.throwIfAborted();
    },
    models: () => models.installed(),
    model: (nameOrId) => find(nameOrId),
    async open(nameOrId) {
      const model = find(nameOrId);
      if (model === undefined) throw new DeviceError("STORAGE", `model ${nameOrId} is not active on this device`);
      return await models.read(model.modelId);
    },
    report,
    flush,
    stats() {
      const { queued = 0, queuedBytes = 0, dropped = 0 } = queue?.stats() ?? {};
      return { ...stats, queuedReports: queued, queuedBytes, droppedReports: dropped };
    },
    on: (event, listener) => emitter.on(event, listener),
    close,
  };

  function find(nameOrId: string): InstalledModel | undefined {
    return models.installed().find((model) => model.modelId === nameOrId || model.modelName === nameOrId);
  }
}

function identify({ deviceId, orgId }: { deviceId: string; orgId: string }) {
  return { deviceId, orgId };
}

function stepOfFailure(error: DeviceError): Step {
  switch (error.kind) {
    case "MANIFEST_SIGNATURE":
    case "MANIFEST_KEY_UNKNOWN":
    case "MANIFEST_MISMATCH":
    case "ARTIFACT_DIGEST":
    case "ARTIFACT_SIZE":
      return Step.FAILED_VERIFICATION;
    case "LOAD":
      return Step.FAILED_ACTIVATION;
    default:
      return Step.FAILED_DOWNLOAD;
  }
}

function reportThrow(error: unknown): never {
  throw error;
}

import { setMaxListeners } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { Platform } from "@octomesh/proto/octomesh/device/v1/device_pb";
import {
  createDeviceClient,
  type DeviceClient,
  type DeviceStore,
  type HttpClient,
  memoryStore,
  platformHttp,
} from "@octomesh/sdk";
import { type CallSummary, callStatistics } from "./call-statistics.ts";
import { deviceTransport } from "./device-transport.ts";
import { flushAll } from "./flush-all.ts";
import { hasLoopbackRange, loopbackAddress, loopbackUrl } from "./loopback-address.ts";
import { type RefusedModels, refusedModels } from "./refused-models.ts";
import { sharedArtifacts } from "./shared-artifacts.ts";
import { syntheticTelemetry } from "./synthetic-telemetry.ts";

/** How a device of a fleet gets its bootstrap token. */
export type Enrolment = "single-use" | "enrolment";

/** A version that became active on a device. */
export interface Activation {
  /** When, in milliseconds of `performance.now()`. */
  atMs: number;
  /** When the device was told that this is its desired state, on the same clock. */
  toldAtMs: number;
  modelId: string;
  version: string;
  /** Whether its bytes were fetched, or kept from before. */
  downloaded: boolean;
  /** Whether a cut download was continued. */
  resumed: boolean;
}

/** One device of a fleet. */
export interface FleetDevice {
  readonly index: number;
  readonly identifier: string;
  readonly enrolment: Enrolment;
  /** Where its connections come from; empty where the system chooses. */
  readonly address: string;
  readonly client: DeviceClient;
  /** Where its credential is kept. */
  readonly store: DeviceStore;
  /** Every version that became active, in order. */
  readonly activations: Activation[];
  /** How often the mesh asked it to wait, and for how long in sum. */
  readonly throttles: { operation: string; retryAfterMs: number; atMs: number }[];
  /** What failed and was tried again, or not. */
  readonly failures: { operation: string; error: unknown; atMs: number }[];
  /** When it registered, in milliseconds of `performance.now()`; undefined before. */
  registeredAtMs: number | undefined;
  /** Whether it has been told that it is revoked. */
  revoked: boolean;
}

/** Many devices in one process. */
export interface Fleet {
  readonly devices: readonly FleetDevice[];
  /** Whether every device has a source address of its own. */
  readonly distinctAddresses: boolean;
  /**
   * Registers and starts devices, all if none are named, a bounded number at a time. Rejects with the first refusal that
   * waiting does not help against.
   */
  start(devices?: readonly FleetDevice[]): Promise<void>;
  /** How many devices run which version of a model: the version, or `-` where there is none. */
  versions(modelId?: string): Map<string, number>;
  /** What all calls came to so far. */
  calls(): CallSummary;
  /** Artifact bytes that came over the network. */
  downloadedBytes(): number;
  /** The models that devices refused, and run no version of that they were told of since. */
  readonly refused: Pick<RefusedModels, "count" | "devices" | "byKind">;
  /** Sends the telemetry that waits at registered devices, for 5 seconds at most over all. Never rejects. */
  flush(): Promise<void>;
  /** Ends every device, after a last `flush`. */
  close(): Promise<void>;
}

/** Settings of a fleet. */
export interface FleetOptions {
  /** Public origin of the mesh. */
  url: string;
  count: number;
  /** Names the fleet: device `i` is `<name>-<i>`. */
  name: string;
  /** Gives device `index` its bootstrap token; asked once for each. */
  token(device: { index: number; identifier: string; enrolment: Enrolment }): Promise<string>;
  /** Keeps the addresses of fleets apart, 1 to 254; at random if not given. */
  addressBlock?: number;
  /** The address of a device, where it is not to have one of its own. */
  addressOf?(index: number, own: string): string;
  /** How a device follows its desired state; by stream if not given. */
  followOf?(index: number): "stream" | "poll";
  /** Fetches artifacts for a device, around `plain`. */
  httpOf?(index: number, plain: HttpClient): HttpClient;
  /** How often each device measures, in milliseconds. Default 20,000; 0 never. */
  measureMs?: number;
  /** How often each device sends what it measured, in milliseconds. Default 15,000. */
  telemetryIntervalMs?: number;
  /** How many devices register at the same time. Default 16. */
  concurrency?: number;
  /** Ends everything. */
  signal?: AbortSignal;
}

/** How long the telemetry that waits may take to be sent at the end, in milliseconds, over all devices. */
const flushTimeoutMs = 5_000;

const platforms = [Platform.ANDROID, Platform.IOS, Platform.LINUX];

/**
 * Makes a fleet: each device is a device client of the SDK with an identity, credential, source address and connection of
 * its own. The first half enrols by single-use tokens, the second by one shared enrolment token. Nothing is sent before
 * `start`.
 */
export async function createFleet(options: FleetOptions): Promise<Fleet> {
  const distinctAddresses = await hasLoopbackRange(options.url);
  const baseUrl = distinctAddresses ? loopbackUrl(options.url) : options.url;
  const block = options.addressBlock ?? 1 + Math.floor(Math.random() * 254);
  const statistics = callStatistics();
  const artifacts = sharedArtifacts();
  const refused = refusedModels();
  const closing: (() => void)[] = [];
  let received = 0;

  const devices = Array.from({ length: options.count }, (_, index) => makeDevice(index));

  function makeDevice(index: number): FleetDevice {
    const identifier = `${options.name}-${String(index).padStart(4, "0")}`;
    const enrolment: Enrolment = index < options.count / 2 ? "single-use" : "enrolment";
    const own = distinctAddresses ? loopbackAddress(block, index) : "";
    const address = distinctAddresses ? (options.addressOf?.(index, own) ?? own) : "";
    const localAddress = address === "" ? undefined : address;
    const connection = deviceTransport(baseUrl, statistics, localAddress);
    closing.push(connection.close);
    const plain = counted(platformHttp({ localAddress }));
    const store = memoryStore();
    let token: Promise<string> | undefined;
    const client = createDeviceClient({
      baseUrl,
      deviceIdentifier: identifier,
      // One token for one registration, however often it has to be repeated.
      bootstrapToken: () => {
        token ??= options.token({ index, identifier, enrolment });
        return token;
      },
      store,
      transport: connection.transport,
      http: options.httpOf?.(index, plain) ?? plain,
      artifacts: artifacts.storeOf(),
      follow: options.followOf?.(index) ?? "stream",
      telemetryMaxBytes: 256 * 1024,
      telemetryIntervalMs: options.telemetryIntervalMs ?? 15_000,
      about: { platform: platforms[index % platforms.length], appVersion: "3.2.0", hardwareModel: "simulated" },
    });
    const device: FleetDevice = {
      index,
      identifier,
      enrolment,
      address,
      client,
      store,
      activations: [],
      throttles: [],
      failures: [],
      registeredAtMs: undefined,
      revoked: false,
    };
    let resumed = false;
    let toldAtMs = 0;
    client.on("desired", () => {
      toldAtMs = performance.now();
    });
    client.on("registered", () => {
      device.registeredAtMs = performance.now();
    });
    client.on("downloaded", (detail) => {
      resumed = detail.resumed;
    });
    client.on("activated", ({ model, downloaded }) => {
      const { modelId, version } = model;
      refused.accept(index, modelId);
      device.activations.push({
        atMs: performance.now(),
        toldAtMs,
        modelId,
        version,
        downloaded,
        resumed: downloaded && resumed,
      });
      resumed = false;
    });
    client.on("throttled", ({ operation, retryAfterMs }) => {
      device.throttles.push({ operation, retryAfterMs, atMs: performance.now() });
    });
    client.on("error", ({ operation, error }) => {
      device.failures.push({ operation, error, atMs: performance.now() });
    });
    client.on("refused", ({ modelId, version, error }) => {
      refused.refuse(index, modelId, error.kind);
      device.failures.push({ operation: `activate ${version}`, error, atMs: performance.now() });
    });
    client.on("revoked", () => {
      device.revoked = true;
    });
    return device;
  }

  function counted(http: HttpClient): HttpClient {
    return async (request) => {
      const begin = performance.now();
      const response = await http(request);
      statistics.record("DownloadArtifact", performance.now() - begin);
      async function* body() {
        for await (const piece of response.body) {
          received += piece.length;
          yield piece;
        }
      }
      return { ...response, body: body() };
    };
  }

  const ended = new AbortController();
  const signal = options.signal === undefined ? ended.signal : AbortSignal.any([options.signal, ended.signal]);
  // Every device waits by this signal: many listeners are meant here, and no leak.
  setMaxListeners(0, signal);
  const measuring: Promise<void>[] = [];

  async function measure(device: FleetDevice): Promise<void> {
    const everyMs = options.measureMs ?? 20_000;
    if (everyMs === 0) return;
    const telemetry = syntheticTelemetry(device.index);
    try {
      // Spread over the interval, so that the fleet does not measure in step.
      for (let waitMs = (everyMs * (device.index % 20)) / 20; ; waitMs = everyMs) {
        await delay(waitMs, undefined, { signal });
        if (device.revoked) return;
        await device.client.report(...telemetry.reports(Date.now(), device.client.models()));
      }
    } catch (error) {
      if (!signal.aborted) device.failures.push({ operation: "measure", error, atMs: performance.now() });
    }
  }

  const flush = () =>
    flushAll(
      devices.flatMap(({ client }) => (client.state === "running" ? [client] : [])),
      flushTimeoutMs,
    );

  return {
    devices,
    distinctAddresses,
    refused,
    flush,
    async start(wanted = devices) {
      const queue = [...wanted];
      const work = async () => {
        for (let device = queue.shift(); device !== undefined; device = queue.shift()) {
          signal.throwIfAborted();
          try {
            await device.client.start({ signal });
          } catch (error) {
            queue.length = 0;
            throw error;
          }
          measuring.push(measure(device));
        }
      };
      await Promise.all(Array.from({ length: Math.min(options.concurrency ?? 16, queue.length) }, work));
    },
    versions(modelId) {
      const counts = new Map<string, number>();
      for (const device of devices) {
        if (device.client.deviceId === undefined) continue;
        const model = device.client.models().find((held) => modelId === undefined || held.modelId === modelId);
        const version = model?.version ?? "-";
        counts.set(version, (counts.get(version) ?? 0) + 1);
      }
      return counts;
    },
    calls: () => statistics.summary(),
    downloadedBytes: () => received,
    async close() {
      ended.abort(new Error("the fleet was closed"));
      await Promise.allSettled(measuring);
      await flush();
      await Promise.allSettled(devices.map((device) => device.client.close()));
      for (const close of closing) close();
    },
  };
}

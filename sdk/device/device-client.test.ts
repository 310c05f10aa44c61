import { execFile } from "node:child_process";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import {
  ObservedState_Failure as Failure,
  ObservedState_State as State,
} from "@octomesh/proto/octomesh/device/v1/observed_state_pb";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  createDeviceClient,
  type DeviceClient,
  type DeviceClientOptions,
  type DeviceEvents,
  type DeviceRecord,
  directoryArtifacts,
  fileStore,
  fileTelemetry,
  memoryStore,
  type NodeOptions,
} from "../index.ts";
import { type FakeMesh, startFakeMesh } from "../testing/fake-mesh.ts";
import { until } from "../testing/until.ts";

let mesh: FakeMesh;
let folder: string;
const open: DeviceClient[] = [];

beforeEach(async () => {
  mesh = await startFakeMesh({ heartbeatMs: 1_000 });
  folder = await mkdtemp(join(tmpdir(), "octomesh-sdk-"));
});

afterEach(async () => {
  await Promise.all(open.splice(0).map((client) => client.close()));
  await mesh.close();
  await rm(folder, { recursive: true, force: true });
});

function device(options: Partial<DeviceClientOptions & NodeOptions> = {}): DeviceClient {
  const client = createDeviceClient({
    baseUrl: mesh.url,
    deviceIdentifier: "unit-1",
    bootstrapToken: mesh.mintBootstrapToken(),
    store: memoryStore(),
    telemetryIntervalMs: 20,
    ...options,
  });
  open.push(client);
  return client;
}

function record<Name extends keyof DeviceEvents>(client: DeviceClient, name: Name): DeviceEvents[Name][] {
  const seen: DeviceEvents[Name][] = [];
  client.on(name, (detail) => seen.push(detail));
  return seen;
}

describe("registering", () => {
  test("brings an identity, which a second client finds in the store", async () => {
    const store = fileStore(join(folder, "credential"));
    const first = device({ store });
    const registered = await first.register();
    expect(registered).toEqual({ deviceId: mesh.device("unit-1")?.id, orgId: mesh.orgId, created: true });
    const second = device({ store, bootstrapToken: undefined });
    expect(await second.register()).toEqual({ ...registered, created: false });
    expect(mesh.calls("register")).toBe(1);
  });

  test("waits as a 429 asks, and goes on", async () => {
    mesh.faults.throttledRegistrations = 2;
    const client = device();
    const throttled = record(client, "throttled");
    await client.register();
    expect(throttled).toEqual([
      { operation: "register", retryAfterMs: 50 },
      { operation: "register", retryAfterMs: 50 },
    ]);
    expect(mesh.calls("register")).toBe(3);
  });

  test("survives a lost answer: the same single-use token and client key get the same device", async () => {
    mesh.faults.lostRegistrations = 1;
    const client = device();
    const { deviceId } = await client.register();
    expect(deviceId).toBe(mesh.device("unit-1")?.id);
    expect(mesh.calls("register")).toBe(2);
  });

  test("survives a crash between the answer and its storage", async () => {
    const store = memoryStore();
    const bootstrapToken = mesh.mintBootstrapToken();
    mesh.faults.lostRegistrations = 1;
    await expect(device({ store, bootstrapToken, registerTimeoutMs: 0 }).register()).rejects.toThrow();
    const { deviceId } = await device({ store, bootstrapToken }).register();
    expect(deviceId).toBe(mesh.device("unit-1")?.id);
  });

  test("is refused for good by a used token", async () => {
    const bootstrapToken = mesh.mintBootstrapToken();
    await device({ bootstrapToken }).register();
    const other = device({ bootstrapToken, deviceIdentifier: "unit-2" });
    await expect(other.register()).rejects.toThrow("credential_used");
  });

  test("needs a token, and a store of its own", async () => {
    await expect(device({ bootstrapToken: undefined }).register()).rejects.toMatchObject({ kind: "NOT_REGISTERED" });
    const store = memoryStore();
    await device({ store }).register();
    const other = device({ store, deviceIdentifier: "unit-2" });
    await expect(other.register()).rejects.toMatchObject({ kind: "IDENTIFIER_MISMATCH" });
  });

  test("waits for approval, and begins to work when it comes", async () => {
    mesh.faults.approvalRequired = true;
    mesh.setDesired(mesh.publish({ version: "1.0.0", bytes: randomBytes(1_000) }));
    const client = device();
    await client.start();
    expect(client.state).toBe("awaiting-approval");
    mesh.approve("unit-1");
    await until(() => client.model("vad") !== undefined, "the model");
    expect(client.state).toBe("running");
  });
});

describe("the credential", () => {
  test("is refreshed once for a hundred calls at once", async () => {
    const client = device();
    await client.register();
    mesh.expireAccessTokens("unit-1");
    await Promise.all(Array.from({ length: 100 }, () => client.heartbeat()));
    expect(mesh.calls("refresh")).toBe(1);
    expect(client.stats().refreshes).toBe(1);
  });

  test("is refreshed before it expires", async () => {
    let clock = Date.now();
    const client = device({ now: () => clock, random: () => 0 });
    await client.register();
    clock += 86_400_000 - 31_000;
    await client.heartbeat();
    expect(mesh.calls("refresh")).toBe(0);
    clock += 2_000;
    await client.heartbeat();
    expect(mesh.calls("refresh")).toBe(1);
  });

  test("survives a refresh whose answer was lost", async () => {
    const client = device();
    await client.register();
    mesh.faults.lostRefreshes = 1;
    await client.refresh();
    await client.heartbeat();
    expect(mesh.calls("refresh")).toBe(2);
  });

  test("is refreshed once by two clients that share a file", async () => {
    const path = join(folder, "credential");
    const first = device({ store: fileStore(path) });
    const second = device({ store: fileStore(path), bootstrapToken: undefined });
    await first.register();
    await second.register();
    mesh.expireAccessTokens("unit-1");
    await Promise.all([first.heartbeat(), second.heartbeat(), first.heartbeat(), second.heartbeat()]);
    expect(mesh.calls("refresh")).toBe(1);
  });

  test("is refreshed once by three processes that share a file", async () => {
    const path = join(folder, "credential");
    await device({ store: fileStore(path) }).register();
    mesh.expireAccessTokens("unit-1");
    const script = fileURLToPath(new URL("../testing/refresh-once.ts", import.meta.url));
    const run = promisify(execFile);
    const outputs = await Promise.all(
      Array.from({ length: 3 }, () => run(process.execPath, ["--import", "tsx", script, mesh.url, path])),
    );
    expect(outputs.map(({ stdout }) => Number(stdout)).sort()).toEqual([0, 0, 1]);
    expect(mesh.calls("refresh")).toBe(1);
  });

  test("that a refresh could not store is used, and stored when that is possible again", async () => {
    const kept = memoryStore();
    let isFull = false;
    const store = {
      ...kept,
      async save(record: DeviceRecord) {
        if (isFull) throw new Error("no space left on device");
        await kept.save(record);
      },
    };
    const client = device({ store });
    await client.register();
    isFull = true;
    await client.refresh();
    await client.heartbeat();
    isFull = false;
    await client.heartbeat();
    expect((await kept.load())?.registration?.accessToken).toBe(
      [...(mesh.device("unit-1")?.accessTokens.keys() ?? [])].at(-1),
    );
  });

  test("stops everything for good when it is revoked, and says so once", async () => {
    const store = memoryStore();
    const client = device({ store });
    await client.start();
    const revoked = record(client, "revoked");
    mesh.revoke("unit-1");
    await until(() => client.state === "revoked", "the end");
    expect(revoked).toHaveLength(1);
    await client.close();
    const calls = mesh.calls("heartbeat");
    await expect(client.heartbeat()).rejects.toMatchObject({ kind: "REVOKED" });
    expect(mesh.calls("heartbeat")).toBe(calls);
    await expect(device({ store }).register()).rejects.toMatchObject({ kind: "REVOKED" });
    const again = await device({ store }).register({ reenrol: true });
    expect(again.created).toBe(true);
  });
});

describe("models", () => {
  test("are fetched, verified, activated and reported, and followed as they change", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(300_000) });
    const two = mesh.publish({ version: "1.1.0", bytes: randomBytes(300_000) });
    mesh.setDesired(one);
    const client = device({ artifacts: directoryArtifacts(join(folder, "models")) });
    await client.start();
    await until(() => client.model("vad")?.version === "1.0.0", "1.0.0");
    mesh.setDesired(two);
    await until(() => client.model("vad")?.version === "1.1.0", "1.1.0");
    const model = client.model("vad");
    expect(model?.previous?.version).toBe("1.0.0");
    expect(await readFile(model?.path ?? "")).toEqual(Buffer.from(two.bytes));
    expect(Buffer.from(await client.open("vad"))).toEqual(Buffer.from(two.bytes));
    await until(() => mesh.observed("unit-1").some((seen) => seen.versionId === two.versionId), "the report");
    await until(() => mesh.observed("unit-1")[0]?.state === State.ACTIVE, "the report");
    expect(mesh.observed("unit-1")).toMatchObject([
      { versionId: two.versionId, state: State.ACTIVE, previousVersionId: one.versionId },
    ]);
    await until(() => mesh.reports().filter(({ kind }) => kind.case === "rolloutProgress").length >= 8, "telemetry");
  });

  test("fall back to the version before without fetching it again", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(50_000) });
    const two = mesh.publish({ version: "1.1.0", bytes: randomBytes(50_000) });
    mesh.setDesired(one);
    const client = device({ artifacts: directoryArtifacts(join(folder, "models")) });
    await client.start();
    await until(() => client.model("vad")?.version === "1.0.0");
    mesh.setDesired(two);
    await until(() => client.model("vad")?.version === "1.1.0");
    const downloads = mesh.calls("download");
    mesh.setDesired(one);
    await until(() => client.model("vad")?.version === "1.0.0");
    expect(mesh.calls("download")).toBe(downloads);
    expect(client.stats().activationsWithoutDownload).toBe(1);
  });

  test("continue a download that was cut, within a run and after a restart", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(400_000) });
    mesh.setDesired(one);
    mesh.faults.cutDownloads = [100_000, 50_000];
    const artifacts = () => directoryArtifacts(join(folder, "models"));
    const store = memoryStore();
    const first = device({ store, artifacts: artifacts() });
    await first.register();
    const begun = new Promise<void>((resolve) => {
      first.on("progress", ({ offset }) => offset >= 100_000 && resolve());
    });
    const syncing = first.sync().catch(() => {});
    await begun;
    await first.close();
    await syncing;
    const before = mesh.calls("download");
    const second = device({ store, artifacts: artifacts() });
    const begins = record(second, "downloading");
    await second.register();
    await second.sync();
    expect(Buffer.from(await second.open("vad"))).toEqual(Buffer.from(one.bytes));
    expect(begins[0]?.resumed).toBe(true);
    expect(begins[0]?.offset).toBeGreaterThanOrEqual(100_000);
    expect(mesh.ranges.slice(before).every((range) => range !== undefined)).toBe(true);
    expect(second.stats().resumedDownloads).toBe(1);
    expect(second.stats().downloadedBytes).toBeLessThanOrEqual(300_000);
  });

  test("are refused where the bytes are not the signed ones; what was active stays", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(40_000) });
    const two = mesh.publish({ version: "1.1.0", bytes: randomBytes(40_000) });
    mesh.setDesired(one);
    const client = device({ artifacts: directoryArtifacts(join(folder, "models")) });
    const refused = record(client, "refused");
    await client.start();
    await until(() => client.model("vad")?.version === "1.0.0");
    mesh.faults.substitutedBytes = Buffer.concat([two.bytes.subarray(0, 39_999), Buffer.of(0x5a ^ 0x01)]);
    if (Buffer.from(two.bytes).equals(Buffer.from(mesh.faults.substitutedBytes))) {
      mesh.faults.substitutedBytes = Buffer.alloc(40_000);
    }
    mesh.setDesired(two);
    await until(() => refused.length === 1, "the refusal");
    expect(refused[0]?.error.kind).toBe("ARTIFACT_DIGEST");
    expect(client.model("vad")?.version).toBe("1.0.0");
    await until(() => mesh.observed("unit-1").some((seen) => seen.failure === Failure.DIGEST), "the report");
    expect(mesh.observed("unit-1")).toContainEqual(
      expect.objectContaining({ versionId: one.versionId, state: State.ACTIVE }),
    );
    expect((await readdir(join(folder, "models"))).filter((name) => name === two.sha256)).toEqual([]);
  });

  test("are refused where the manifest is signed by another key, without a download", async () => {
    const { privateKey } = generateKeyPairSync("ed25519");
    mesh.setDesired(mesh.publish({ version: "1.0.0", bytes: randomBytes(1_000), key: privateKey }));
    const client = device();
    const refused = record(client, "refused");
    await client.register();
    await client.sync();
    expect(refused.map(({ error }) => error.kind)).toEqual(["MANIFEST_SIGNATURE"]);
    expect(mesh.calls("download")).toBe(0);
    await until(() => mesh.observed("unit-1")[0]?.failure === Failure.SIGNATURE, "the report");
  });

  test("are refused where a signed manifest is offered for another version", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(1_000) });
    const two = mesh.publish({ version: "2.0.0", bytes: randomBytes(1_000) });
    mesh.setDesired({ ...two, manifest: one.manifest, signature: one.signature });
    const client = device();
    const refused = record(client, "refused");
    await client.register();
    await client.sync();
    expect(refused.map(({ error }) => error.kind)).toEqual(["MANIFEST_MISMATCH"]);
  });

  test("are refused where they are larger than the device takes, before a byte is fetched", async () => {
    mesh.setDesired(mesh.publish({ version: "1.0.0", bytes: randomBytes(2_000) }));
    const client = device({ maxArtifactBytes: 1_999 });
    const refused = record(client, "refused");
    await client.register();
    await client.sync();
    expect(refused.map(({ error }) => error.kind)).toEqual(["ARTIFACT_TOO_LARGE"]);
    expect(mesh.calls("download")).toBe(0);
  });

  test("are refused where the app cannot load them", async () => {
    mesh.setDesired(mesh.publish({ version: "1.0.0", bytes: randomBytes(2_000) }));
    const client = device({
      load: async () => {
        throw new Error("not a model");
      },
    });
    const refused = record(client, "refused");
    await client.register();
    await client.sync();
    expect(refused.map(({ error }) => error.kind)).toEqual(["LOAD"]);
    expect(client.models()).toEqual([]);
  });

  test("get a new grant where the old one has lapsed, and a new token where it has expired", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(2_000) });
    mesh.setDesired(one);
    const client = device({
      http: async (request) => {
        if (mesh.calls("download") === 0) {
          mesh.faults.grantGeneration = 1;
          mesh.expireAccessTokens("unit-1");
        }
        return await platformHttpOnce(request);
      },
    });
    await client.register();
    await client.sync();
    expect(client.model("vad")?.version).toBe("1.0.0");
    expect(mesh.calls("refresh")).toBe(1);
  });

  test("that are taken back while they are on their way are no failure", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(2_000) });
    const two = mesh.publish({ version: "1.1.0", bytes: randomBytes(2_000) });
    mesh.setDesired(two);
    const client = device({
      http: async (request) => {
        if (mesh.calls("download") === 0) {
          mesh.faults.grantGeneration = 1;
          mesh.setDesired(one);
        }
        return await platformHttpOnce(request);
      },
    });
    const refused = record(client, "refused");
    await client.register();
    await client.sync();
    await client.sync();
    expect(client.model("vad")?.version).toBe("1.0.0");
    expect(refused).toEqual([]);
  });

  test("leave the device when they are not desired any more", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(2_000) });
    mesh.setDesired(one);
    const client = device({ artifacts: directoryArtifacts(join(folder, "models")) });
    await client.register();
    await client.sync();
    mesh.setDesired();
    await client.sync();
    expect(client.models()).toEqual([]);
    expect(await readdir(join(folder, "models"))).not.toContain(one.sha256);
  });

  test("are still there after a restart, and not fetched again", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(2_000) });
    mesh.setDesired(one);
    const store = memoryStore();
    const first = device({ store, artifacts: directoryArtifacts(join(folder, "models")) });
    await first.register();
    await first.sync();
    await first.close();
    const second = device({ store, artifacts: directoryArtifacts(join(folder, "models")) });
    await second.start();
    expect(second.model("vad")?.versionId).toBe(one.versionId);
    await second.sync();
    expect(mesh.calls("download")).toBe(1);
  });

  test("are fetched again where their file was changed, and never given out changed", async () => {
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(2_000) });
    mesh.setDesired(one);
    const client = device({ artifacts: directoryArtifacts(join(folder, "models")) });
    await client.register();
    await client.sync();
    await writeFile(client.model("vad")?.path ?? "", randomBytes(2_000));
    await expect(client.open("vad")).rejects.toMatchObject({ kind: "ARTIFACT_DIGEST" });
  });

  test("are followed by polling where there are no streams", async () => {
    mesh.faults.withoutStreams = true;
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(2_000) });
    const client = device();
    const modes = record(client, "connection");
    await client.start();
    await until(() => modes.some(({ mode }) => mode === "poll"), "polling");
    mesh.setDesired(one);
    await until(() => client.model("vad") !== undefined, "the model");
    expect(mesh.calls("watchDesiredState")).toBe(1);
  });

  test("are fetched from the local address that was chosen", async () => {
    if (process.platform !== "linux") return;
    mesh.setDesired(mesh.publish({ version: "1.0.0", bytes: randomBytes(2_000) }));
    const client = device({ localAddress: "127.0.0.77" });
    await client.register();
    await client.sync();
    expect(mesh.sources).toEqual(["127.0.0.77"]);
  });
});

describe("telemetry", () => {
  const latency = (value: number) => ({
    kind: {
      case: "latency" as const,
      value: {
        modelId: "mdl_aaaaaaaaaaaaaaaaaaaaaaaaaa",
        versionId: "mvr_aaaaaaaaaaaaaaaaaaaaaaaaaa",
        operation: 1,
        milliseconds: [value],
      },
    },
  });
  const values = () =>
    mesh
      .reports()
      .flatMap(({ kind }) => (kind.case === "latency" ? kind.value.milliseconds : []))
      .sort((a, b) => a - b);

  test("survives a restart, and is counted once though its answer was lost", async () => {
    const store = memoryStore();
    const path = join(folder, "telemetry.log");
    const first = device({ store, telemetry: fileTelemetry(path), retry: false });
    await first.register();
    await first.report(latency(1), latency(2));
    mesh.faults.lostTelemetry = 1;
    await expect(first.flush()).rejects.toThrow();
    await first.report(latency(3));
    await first.close();
    const second = device({ store, telemetry: fileTelemetry(path) });
    await second.register();
    await second.report(latency(4));
    await second.flush();
    expect(values()).toEqual([1, 2, 3, 4]);
    expect(mesh.duplicates()).toBe(1);
    expect(new Set([...mesh.batches.keys()].map((key) => key.split("/")[1]))).toEqual(
      new Set([first.bootId, second.bootId]),
    );
  });

  test("waits as a 429 asks", async () => {
    const client = device();
    await client.register();
    mesh.faults.throttledTelemetry = 1;
    const throttled = record(client, "throttled");
    await client.report(latency(1));
    await client.flush();
    expect(values()).toEqual([1]);
    expect(throttled).toHaveLength(1);
  });

  test("drops only the report that is refused", async () => {
    const client = device();
    await client.register();
    mesh.faults.isPoison = ({ kind }) => kind.case === "latency" && kind.value.milliseconds.includes(5);
    const dropped = record(client, "telemetry-dropped");
    await client.report(...Array.from({ length: 12 }, (_, index) => latency(index)));
    await client.flush();
    expect(values()).toEqual([0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]);
    expect(dropped).toEqual([{ reports: 1 }]);
    expect(client.stats().queuedReports).toBe(0);
  });

  test("is one process's at a time", async () => {
    const path = join(folder, "telemetry.log");
    const first = device({ telemetry: fileTelemetry(path) });
    await first.report(latency(1));
    const second = device({ telemetry: fileTelemetry(path) });
    await expect(second.report(latency(1))).rejects.toMatchObject({ kind: "STORE_LOCKED" });
  });
});

describe("closing", () => {
  test("ends every loop and leaves nothing behind that keeps the process", async () => {
    const client = device({ artifacts: directoryArtifacts(join(folder, "models")) });
    await client.start();
    await until(() => mesh.calls("heartbeat") > 0, "a heartbeat");
    await client.close();
    expect(client.state).toBe("closed");
    expect(await readdir(join(folder, "models"))).toEqual([]);
    await expect(client.heartbeat()).rejects.toMatchObject({ kind: "CLOSED" });
    await client.close();
  });

  test("a listener that throws disturbs nobody", async () => {
    const client = device();
    const problems: unknown[] = [];
    const onUncaught = (error: unknown) => problems.push(error);
    const before = process.listeners("uncaughtException");
    process.removeAllListeners("uncaughtException");
    process.on("uncaughtException", onUncaught);
    try {
      client.on("registered", () => {
        throw new Error("a listener's own");
      });
      const registered = record(client, "registered");
      await client.register();
      expect(registered).toHaveLength(1);
      await until(() => problems.length === 1, "the report of the throw");
    } finally {
      process.removeListener("uncaughtException", onUncaught);
      for (const listener of before) process.on("uncaughtException", listener);
    }
  });
});

async function platformHttpOnce(request: Parameters<NonNullable<DeviceClientOptions["http"]>>[0]) {
  const { platformHttp } = await import("../index.ts");
  return await platformHttp()(request);
}

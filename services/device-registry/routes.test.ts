import { setTimeout as sleep } from "node:timers/promises";
import type { CallOptions } from "@connectrpc/connect";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { openTestDatabase } from "@octomesh/mesh/test/database-fixture";
import type { DesiredState } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import { Device_Presence as Presence, Device_State as State } from "@octomesh/proto/octomesh/device/v1/device_pb";
import { ObservedState_State } from "@octomesh/proto/octomesh/device/v1/observed_state_pb";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { DeviceRegistryTables } from "./tables.ts";
import { as, asPeer, startTestService, type TestService } from "./test/service-fixture.ts";

const database = await openTestDatabase<DeviceRegistryTables>({
  service: "device-registry",
  migrations: new URL("./migrations/", import.meta.url),
});
let one: TestService;
let two: TestService;

beforeAll(async () => {
  one = await startTestService({ database });
  two = await startTestService({ database, identity: one.identity, rollout: one.rollout });
});
afterAll(async () => {
  await Promise.all([one.stop(), two.stop()]);
});

const clientKey = "k".repeat(32);
const otherKey = "o".repeat(32);

async function refusal(work: Promise<unknown>): Promise<string> {
  return await work.then(
    () => "",
    (error: unknown) => Reason[reasonOf(error) ?? 0] ?? "",
  );
}

async function eventually(condition: () => boolean | Promise<boolean>, withinMs = 5000): Promise<void> {
  const deadline = Date.now() + withinMs;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${withinMs} ms: ${condition}`);
    await sleep(5);
  }
}

/** An organisation with a shared enrolment token, and what a test does in it. */
function organization(token: { maxUses?: number; approvalRequired?: boolean; groupIds?: string[] } = {}) {
  const orgId = newId("org");
  const tokenId = one.identity.addToken({ orgId, maxUses: 1000, ...token });
  const admin = as("api_key", orgId);
  const register = (identifier: string, key = clientKey, by = tokenId, service = one) =>
    service.devices.registerDevice({ deviceIdentifier: identifier, clientKey: key }, as("bootstrap", orgId, by));
  return {
    orgId,
    tokenId,
    admin,
    register,
    async device(identifier = "phone") {
      const { device } = await register(identifier);
      const id = device?.id ?? "";
      return { id, self: as("device", orgId, id) };
    },
  };
}

/** Collects a stream until it ends. */
function follow(service: TestService, id: string, options: CallOptions, etag = "") {
  const states: DesiredState[] = [];
  const stop = new AbortController();
  const ended = (async () => {
    try {
      for await (const state of service.devices.watchDesiredState({ id, etag }, { ...options, signal: stop.signal })) {
        states.push(state);
      }
      return "";
    } catch (error) {
      return Reason[reasonOf(error) ?? 0] ?? "";
    }
  })();
  return { states, ended, etags: () => states.map((state) => state.etag), stop: () => stop.abort() };
}

describe("registration", () => {
  it("answers a device, its credential, the keys of manifests, and the interval", async () => {
    const { orgId, register } = organization();
    const answer = await register("phone");
    expect(answer.device).toMatchObject({ orgId, deviceIdentifier: "phone", state: State.ACTIVE, cloneSigns: 0 });
    expect(answer.device?.presence).toBe(Presence.OFFLINE);
    expect(answer.credential).toMatchObject({ orgId, deviceId: answer.device?.id });
    expect(answer.manifestKeys).toHaveLength(1);
    expect(answer.heartbeatInterval?.seconds).toBe(60n);
  });

  it("asks for an organisation's manifest keys once", async () => {
    const { register } = organization();
    const before = one.rollout.manifestKeyCalls;
    await Promise.all(Array.from({ length: 10 }, (_, index) => register(`d${index}`)));
    expect(one.rollout.manifestKeyCalls).toBe(before + 1);
  });

  it("makes one device of fifty simultaneous registrations by one installation, on two replicas", async () => {
    const { orgId, tokenId, register, admin } = organization();
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, index) => register("phone", clientKey, tokenId, index % 2 === 0 ? one : two)),
    );
    expect(new Set(answers.map((answer) => answer.device?.id)).size).toBe(1);
    expect(new Set(answers.map((answer) => answer.credential?.id)).size).toBe(1);
    expect((await one.devices.listDevices({}, admin)).devices).toHaveLength(1);
    expect(one.identity.families.filter((family) => family.orgId === orgId)).toHaveLength(1);
  });

  it("lets one of fifty simultaneous installations have an identifier", async () => {
    const { orgId, tokenId, register } = organization();
    const outcomes = await Promise.all(
      Array.from({ length: 50 }, (_, index) =>
        refusal(register("phone", `installation ${index} `.padEnd(32, "x"), tokenId, index % 2 === 0 ? one : two)),
      ),
    );
    expect(outcomes.filter((reason) => reason === "")).toHaveLength(1);
    expect(outcomes.filter((reason) => reason === "REENROLMENT_NOT_GRANTED")).toHaveLength(49);
    expect(one.identity.families.filter((family) => family.orgId === orgId)).toHaveLength(1);
  });

  it("gives the same device and credential to a retry after a lost answer, with a token for one use", async () => {
    const { orgId, register } = organization();
    const single = one.identity.addToken({ orgId });
    one.identity.loseNextAnswer();
    expect(await refusal(register("phone", clientKey, single))).toBe("SERVICE_UNAVAILABLE");
    const [retried, again] = [await register("phone", clientKey, single), await register("phone", clientKey, single)];
    expect(retried.credential).toEqual({ ...again.credential, expireTime: retried.credential?.expireTime });
    expect(retried.device).toEqual(again.device);
    expect(one.identity.live(retried.device?.id ?? "")).toHaveLength(1);
    expect(await refusal(register("phone", otherKey, single))).toBe("REENROLMENT_NOT_GRANTED");
    expect(await refusal(register("tablet", clientKey, single))).toBe("CREDENTIAL_USED");
  });

  it("frees the identifier when identity refuses the token", async () => {
    const { orgId, register, admin } = organization();
    const used = one.identity.addToken({ orgId, maxUses: 0 });
    expect(await refusal(register("phone", clientKey, used))).toBe("CREDENTIAL_USED");
    expect((await one.devices.listDevices({}, admin)).devices).toEqual([]);
    await register("phone", otherKey);
  });

  it("does not let an installation without a client key stand in its own way", async () => {
    const { register } = organization();
    one.identity.loseNextAnswer();
    expect(await refusal(register("phone", ""))).toBe("SERVICE_UNAVAILABLE");
    expect((await register("phone", "")).device?.state).toBe(State.ACTIVE);
    expect(await refusal(register("phone", ""))).toBe("REENROLMENT_NOT_GRANTED");
  });

  it("writes nothing when the manifest keys cannot be had", async () => {
    const { register, admin } = organization();
    one.rollout.away = true;
    expect(await refusal(register("phone"))).not.toBe("");
    one.rollout.away = false;
    expect((await one.devices.listDevices({}, admin)).devices).toEqual([]);
    await register("phone");
  });

  it("refuses a taken identifier, counts it, and admits it once after a grant, ending the old credentials", async () => {
    const { orgId, register, admin } = organization();
    const { device } = await register("phone");
    const id = device?.id ?? "";
    const [old] = one.identity.live(id);
    expect(await refusal(register("phone", otherKey))).toBe("REENROLMENT_NOT_GRANTED");
    expect(await one.devices.getDevice({ id }, admin)).toMatchObject({ cloneSigns: 1 });
    expect((await one.devices.allowReenrolment({ id }, admin)).reenrolmentGranted).toBe(true);
    const taken = await register("phone", otherKey);
    expect(taken.device).toMatchObject({ id, reenrolmentGranted: false });
    expect(old?.revoked).toBe(true);
    expect(one.identity.live(id)).toHaveLength(1);
    expect(await refusal(register("phone", clientKey))).toBe("REENROLMENT_NOT_GRANTED");
    expect(await refusal(one.devices.allowReenrolment({ id }, as("api_key", newId("org"))))).toBe("RESOURCE_NOT_FOUND");
    expect(one.identity.families.every((family) => family.orgId !== orgId || family.deviceId === id)).toBe(true);
  });

  it("refuses a revoked identifier until a grant", async () => {
    const { register, admin } = organization();
    const { device } = await register("phone");
    const id = device?.id ?? "";
    await one.devices.revokeDevice({ id }, admin);
    expect(await refusal(register("phone"))).toBe("REENROLMENT_NOT_GRANTED");
    await one.devices.allowReenrolment({ id }, admin);
    expect((await register("phone")).device).toMatchObject({ id, state: State.ACTIVE });
  });

  it("hands out nothing when the device is revoked in the middle", async () => {
    const { orgId, register, admin } = organization();
    const { device } = await register("phone");
    const id = device?.id ?? "";
    const again = one.identity.addToken({ orgId });
    one.identity.beforeIssue(async () => {
      one.identity.beforeIssue(async () => {});
      await two.devices.revokeDevice({ id }, admin);
    });
    expect(await refusal(register("phone", clientKey, again))).toBe("REENROLMENT_NOT_GRANTED");
    expect(one.identity.live(id)).toEqual([]);
    expect((await one.devices.getDevice({ id }, admin)).state).toBe(State.REVOKED);
  });

  it("does not outlive a revocation that it slips into", async () => {
    const { orgId, register, admin } = organization();
    const { device } = await register("phone");
    const id = device?.id ?? "";
    const again = one.identity.addToken({ orgId });
    one.identity.afterNextRevocation(async () => {
      expect((await register("phone", clientKey, again, two)).device?.state).toBe(State.ACTIVE);
      expect(one.identity.live(id)).toHaveLength(1);
    });
    expect((await one.devices.revokeDevice({ id }, admin)).state).toBe(State.REVOKED);
    expect(one.identity.live(id)).toEqual([]);
  });

  it("keeps a device waiting for approval where the token says so", async () => {
    const { device, admin } = organization({ approvalRequired: true });
    const { id, self } = await device();
    expect(await refusal(one.devices.heartbeat({ id, bootId: "a" }, self))).toBe("DEVICE_NOT_ACTIVE");
    expect(await refusal(one.devices.getDesiredState({ id }, self))).toBe("DEVICE_NOT_ACTIVE");
    expect(await refusal(one.devices.reportObservedState({ id, bootId: "a" }, self))).toBe("DEVICE_NOT_ACTIVE");
    expect((await one.devices.getDesiredState({ id }, admin)).models).toEqual([]);
    expect((await two.devices.approveDevice({ id }, admin)).state).toBe(State.ACTIVE);
    await one.devices.heartbeat({ id, bootId: "a" }, self);
    await eventually(async () => (await refusal(one.devices.getDesiredState({ id }, self))) === "");
  });

  it("refuses text that cannot be stored", async () => {
    const { register } = organization();
    expect(await refusal(register("pho\u0000ne"))).toBe("VALIDATION_FAILED");
  });
});

describe("devices", () => {
  it("belong to their organisation: others' ids do not exist", async () => {
    const { device } = organization();
    const { id } = await device();
    const stranger = as("session", newId("org"), newId("usr"));
    const { devices } = one;
    for (const work of [
      () => devices.getDevice({ id }, stranger),
      () => devices.updateDevice({ id, displayName: "x" }, stranger),
      () => devices.approveDevice({ id }, stranger),
      () => devices.revokeDevice({ id }, stranger),
      () => devices.allowReenrolment({ id }, stranger),
      () => devices.getDesiredState({ id }, stranger),
      () => devices.getObservedState({ id }, stranger),
    ]) {
      expect(await refusal(work())).toBe("RESOURCE_NOT_FOUND");
    }
    expect((await devices.listDevices({}, stranger)).devices).toEqual([]);
    expect(one.identity.live(id)).toHaveLength(1);
  });

  it("are listed in pages whose tokens are good for the same list only", async () => {
    const { orgId, device, admin } = organization();
    for (let index = 0; index < 5; index++) await device(`d${index}`);
    const first = await one.devices.listDevices({ pageSize: 2 }, admin);
    const { nextPageToken: pageToken } = first;
    const second = await one.devices.listDevices({ pageSize: 3, pageToken }, admin);
    expect([...first.devices, ...second.devices].map((each) => each.deviceIdentifier)).toEqual([
      "d4",
      "d3",
      "d2",
      "d1",
      "d0",
    ]);
    expect(second.nextPageToken).toBe("");
    const otherFilter = one.devices.listDevices({ pageToken, state: State.ACTIVE }, admin);
    expect(await refusal(otherFilter)).toBe("PAGE_TOKEN_INVALID");
    const otherOrg = one.devices.listDevices({ pageToken }, as("api_key", newId("org")));
    expect(await refusal(otherOrg)).toBe("PAGE_TOKEN_INVALID");
    expect((await one.devices.listDevices({ deviceIdentifier: "d3" }, as("api_key", orgId))).devices).toHaveLength(1);
  });

  it("keep their labels unless they are set", async () => {
    const { device, admin } = organization();
    const { id } = await device();
    await one.devices.updateDevice({ id, labels: { a: "1" }, setLabels: true }, admin);
    const renamed = await one.devices.updateDevice({ id, displayName: "Lab" }, admin);
    expect(renamed).toMatchObject({ displayName: "Lab", labels: { a: "1" } });
    expect(await refusal(one.devices.updateDevice({ id, labels: { b: "2" } }, admin))).toBe("VALIDATION_FAILED");
    expect(await refusal(one.devices.updateDevice({ id, etag: "r1" }, admin))).toBe("ETAG_MISMATCH");
  });

  it("are revoked at once, again and again, with their streams and their credentials", async () => {
    const { orgId, device, admin } = organization();
    const { id, self } = await device();
    const neighbour = await device("neighbour");
    const streams = [follow(one, id, self), follow(two, id, self), follow(one, neighbour.id, neighbour.self)] as const;
    await eventually(() => streams.every((stream) => stream.states.length === 1));
    expect((await one.devices.revokeDevice({ id, reason: "lost" }, admin)).state).toBe(State.REVOKED);
    expect(await streams[0].ended).toBe("DEVICE_NOT_ACTIVE");
    expect(await streams[1].ended).toBe("DEVICE_NOT_ACTIVE");
    expect(one.identity.live(id)).toEqual([]);
    expect(await refusal(one.devices.heartbeat({ id, bootId: "a" }, self))).toBe("DEVICE_NOT_ACTIVE");
    expect(await refusal(one.devices.getDesiredState({ id }, self))).toBe("DEVICE_NOT_ACTIVE");
    expect((await two.devices.revokeDevice({ id }, admin)).state).toBe(State.REVOKED);
    one.rollout.deliver(orgId, "1.0.0");
    await eventually(() => streams[2].etags().includes("v1.0.0"));
    streams[2].stop();
  });
});

describe("heartbeats", () => {
  it("of five hundred devices are stored in a few commits", async () => {
    const orgId = newId("org");
    const devices = Array.from({ length: 500 }, () => {
      const id = newId("dev");
      return { id, self: as("device", orgId, id) };
    });
    await database.ingest([orgId], async (tx) => {
      const ids = devices.map(({ id }) => id);
      await sql`insert into devices (org_id, id, device_identifier, state, create_time, update_time)
        select ${orgId}, id, id, 'active', now(), now() from unnest(${ids}::text[]) as id`.execute(tx);
      await sql`insert into device_presence (org_id, device_id)
        select ${orgId}, unnest(${ids}::text[])`.execute(tx);
    });
    const commits = async () => {
      const { rows } = await database.read(orgId, (tx) =>
        sql<{ versions: bigint }>`select count(distinct xmin::text) as versions from device_presence
          where last_heartbeat_time is not null`.execute(tx),
      );
      return Number(rows[0]?.versions);
    };
    const answers = await Promise.all(
      devices.map(({ id, self }) => one.devices.heartbeat({ id, bootId: "a", sequence: 1n }, self)),
    );
    expect(answers).toHaveLength(500);
    // How many exactly is a matter of how busy the machine is.
    expect(await commits()).toBeLessThanOrEqual(50);
  });

  it("show a device as online, and carry its versions", async () => {
    const { device, admin } = organization();
    const { id, self } = await device();
    await one.devices.heartbeat({ id, bootId: "a", sdkVersion: "2.0", osVersion: "17" }, self);
    const seen = await two.devices.getDevice({ id }, admin);
    expect(seen).toMatchObject({ presence: Presence.ONLINE, sdkVersion: "2.0", osVersion: "17" });
    expect(seen.lastHeartbeatTime).toBeDefined();
  });

  it("answer the etag from memory while nothing changes, and anew when it does", async () => {
    const { orgId, device } = organization();
    const { id, self } = await device();
    const beat = async () => (await one.devices.heartbeat({ id, bootId: "a" }, self)).desiredStateEtag;
    const calls = () => one.rollout.batches.length;
    // The registration's own event may arrive after the first heartbeat.
    await eventually(async () => {
      const earlier = calls();
      return (await beat()) === "none" && calls() === earlier;
    });
    const before = calls();
    for (let index = 0; index < 5; index++) expect(await beat()).toBe("none");
    expect(calls()).toBe(before);
    one.rollout.deliver(orgId, "1.0.0");
    await eventually(async () => (await beat()) === "v1.0.0");
  });

  it("are stored while rollout is away", async () => {
    const { device, admin } = organization();
    const { id, self } = await device();
    one.rollout.away = true;
    const { desiredStateEtag } = await one.devices.heartbeat({ id, bootId: "a" }, self);
    one.rollout.away = false;
    expect(desiredStateEtag).toBe("");
    expect((await one.devices.getDevice({ id }, admin)).presence).toBe(Presence.ONLINE);
  });

  it("of two installations with one credential are noticed", async () => {
    const { device, admin } = organization();
    const { id, self } = await device();
    for (const [bootId, sequence] of [
      ["a", 0n],
      ["b", 0n],
      ["a", 1n],
    ] as const) {
      await one.devices.heartbeat({ id, bootId, sequence }, self);
    }
    expect((await one.devices.getDevice({ id }, admin)).cloneSigns).toBe(1);
  });
});

describe("the desired state", () => {
  it("is streamed at once and on change, in one batch for all who watch, each with a fresh grant", async () => {
    const { orgId, device } = organization();
    const devices = await Promise.all(Array.from({ length: 50 }, (_, index) => device(`d${index}`)));
    const streams = devices.map(({ id, self }) => follow(one, id, self));
    await eventually(() => streams.every((stream) => stream.states.length === 1));
    const before = one.rollout.batches.length;
    one.rollout.deliver(orgId, "1.0.0");
    await eventually(() => streams.every((stream) => stream.states.length === 2));
    // Fifty registrations may still be telling of themselves; one call for each device it is not.
    expect(one.rollout.batches.slice(before).length).toBeLessThanOrEqual(5);
    const grants = streams.map((stream) => stream.states[1]?.models[0]?.downloadGrant);
    expect(new Set(grants).size).toBe(50);
    expect(streams[0]?.states[1]?.pollInterval?.seconds).toBe(30n);
    for (const stream of streams) stream.stop();
    await Promise.all(streams.map((stream) => stream.ended));
  });

  it("is not repeated to a device that holds it", async () => {
    const { orgId, device } = organization();
    const { id, self } = await device();
    one.rollout.deliver(orgId, "1.0.0");
    const stream = follow(one, id, self, "v1.0.0");
    one.rollout.deliver(newId("org"), "9.9.9");
    one.rollout.deliver(orgId, "1.1.0");
    await eventually(() => stream.etags().includes("v1.1.0"));
    expect(stream.etags()).toEqual(["v1.1.0"]);
    stream.stop();
  });

  it("follows groups, whichever replica changes them", async () => {
    const { orgId, admin, device } = organization();
    const { id, self } = await device();
    const group = await one.groups.createDeviceGroup({ displayName: "beta" }, admin);
    one.rollout.deliver(orgId, "1.0.0");
    one.rollout.deliver(orgId, "2.0.0", group.id);
    const stream = follow(one, id, self);
    await eventually(() => stream.etags().at(-1) === "v1.0.0");
    await two.groups.addGroupDevices({ id: group.id, deviceIds: [id] }, admin);
    await eventually(() => stream.etags().at(-1) === "v2.0.0");
    await two.groups.deleteDeviceGroup({ id: group.id }, admin);
    await eventually(() => stream.etags().at(-1) === "v1.0.0");
    stream.stop();
  });

  it("is waited for by a long poll, until it changes or the time is up", async () => {
    const { orgId, device } = organization();
    const { id, self } = await device();
    const wait = { seconds: 30n, nanos: 0 };
    const held = await one.devices.getDesiredState({ id }, self);
    expect((await one.devices.getDesiredState({ id, etag: "other", wait }, self)).etag).toBe(held.etag);
    const waiting = one.devices.getDesiredState({ id, etag: held.etag, wait }, self);
    one.rollout.deliver(orgId, "1.0.0");
    expect((await waiting).etag).toBe("v1.0.0");
    const short = { seconds: 0n, nanos: 50_000_000 };
    expect((await one.devices.getDesiredState({ id, etag: "v1.0.0", wait: short }, self)).etag).toBe("v1.0.0");
  });

  it("carries its etag as a header, and grants for the device alone", async () => {
    const { orgId, device, admin } = organization();
    const { id, self } = await device();
    one.rollout.deliver(orgId, "1.0.0");
    let etag: string | null = null;
    const own = await one.devices.getDesiredState(
      { id },
      { ...self, onHeader: (header) => (etag = header.get("etag")) },
    );
    expect(etag).toBe('"v1.0.0"');
    expect(own.models[0]?.downloadGrant).toMatch(/^grant /);
    expect((await one.devices.getDesiredState({ id }, admin)).models[0]?.downloadGrant).toBe("");
  });

  it("is another device's business never", async () => {
    const { device } = organization();
    const { self } = await device();
    const other = await device("tablet");
    expect(await refusal(one.devices.getDesiredState({ id: other.id }, self))).toBe("NOT_SELF");
    expect(await follow(one, other.id, self).ended).toBe("NOT_SELF");
  });

  it("arrives after rollout was away, and after a watch was cut", async () => {
    const { orgId, device } = organization();
    const { id, self } = await device();
    one.rollout.away = true;
    const stream = follow(one, id, self);
    const refusals = one.rollout.refusals;
    await eventually(() => one.rollout.refusals > refusals);
    one.rollout.away = false;
    await eventually(() => stream.states.length === 1);
    const watches = one.rollout.resumedFrom.length;
    one.rollout.cutWatches();
    one.rollout.deliver(orgId, "1.0.0");
    await eventually(() => stream.etags().includes("v1.0.0"));
    expect(one.rollout.resumedFrom.slice(watches)).not.toContain("");
    stream.stop();
  });

  it("is asked for in halves where a batch does not fit into one answer", async () => {
    const { device } = organization();
    const devices = await Promise.all(Array.from({ length: 9 }, (_, index) => device(`d${index}`)));
    one.rollout.maxBatch = 3;
    const states = await Promise.all(devices.map(({ id, self }) => one.devices.getDesiredState({ id }, self)));
    one.rollout.maxBatch = 1000;
    expect(states.map((state) => state.deviceId)).toEqual(devices.map((each) => each.id));
  });

  it("gives up the oldest of a device's streams for the fifth", async () => {
    const { device } = organization();
    const { id, self } = await device();
    const streams = [];
    for (let index = 0; index < 5; index++) {
      const stream = follow(one, id, self);
      await eventually(() => stream.states.length === 1);
      streams.push(stream);
    }
    expect(await streams[0]?.ended).toBe("");
    for (const stream of streams) stream.stop();
    await Promise.all(streams.map((stream) => stream.ended));
  });
});

describe("the observed state", () => {
  const modelId = newId("mdl");
  const versionId = newId("mvr");

  it("is stored, read and counted", async () => {
    const { device, admin } = organization();
    const devices = await Promise.all([device("a"), device("b")]);
    const models = [{ modelId, versionId, state: ObservedState_State.ACTIVE }];
    for (const { id, self } of devices) {
      const report = { id, bootId: "x", sequence: 1n, models };
      expect((await one.devices.reportObservedState(report, self)).applied).toBe(true);
      expect((await two.devices.reportObservedState({ ...report, sequence: 0n }, self)).applied).toBe(false);
    }
    const [first] = devices;
    const observed = await two.devices.getObservedState({ id: first?.id ?? "" }, admin);
    expect(observed).toMatchObject({ bootId: "x", sequence: 1n, models });
    const { counts } = await two.devices.countObservedVersions({ modelId }, admin);
    expect(counts).toMatchObject([{ versionId, state: ObservedState_State.ACTIVE, devices: 2n }]);
    const elsewhere = as("api_key", newId("org"));
    expect((await one.devices.countObservedVersions({ modelId }, elsewhere)).counts).toEqual([]);
  });

  it("names each version once", async () => {
    const { device } = organization();
    const { id, self } = await device();
    const model = { modelId, versionId, state: ObservedState_State.READY };
    const report = one.devices.reportObservedState({ id, bootId: "x", models: [model, model] }, self);
    expect(await refusal(report)).toBe("VALIDATION_FAILED");
  });
});

describe("groups", () => {
  it("are made once per request id", async () => {
    const { admin } = organization();
    const request = { displayName: "beta", requestId: "r1" };
    let replayed: string | null = null;
    const made = await one.groups.createDeviceGroup(request, admin);
    const again = await two.groups.createDeviceGroup(request, {
      ...admin,
      onHeader: (header) => (replayed = header.get("octomesh-replayed")),
    });
    expect(again).toEqual(made);
    expect(replayed).toBe("true");
    expect(await refusal(one.groups.createDeviceGroup({ ...request, displayName: "b" }, admin))).toBe(
      "REQUEST_ID_REUSED",
    );
    expect(await refusal(one.groups.createDeviceGroup({ displayName: "beta" }, admin))).toBe("RESOURCE_EXISTS");
  });

  it("are read, listed by name in pages, changed and deleted, by their organisation alone", async () => {
    const { admin } = organization();
    const stranger = as("api_key", newId("org"));
    const made = [];
    for (const displayName of ["c", "a", "b"]) made.push(await one.groups.createDeviceGroup({ displayName }, admin));
    const first = await one.groups.listDeviceGroups({ pageSize: 2 }, admin);
    const rest = await one.groups.listDeviceGroups({ pageToken: first.nextPageToken }, admin);
    expect([...first.deviceGroups, ...rest.deviceGroups].map((group) => group.displayName)).toEqual(["a", "b", "c"]);
    const { id = "", etag } = made[0] ?? {};
    const changed = await one.groups.updateDeviceGroup({ id, description: "Canaries", etag }, admin);
    expect(changed).toMatchObject({ displayName: "c", description: "Canaries" });
    expect(await refusal(one.groups.updateDeviceGroup({ id, displayName: "x", etag }, admin))).toBe("ETAG_MISMATCH");
    expect(await refusal(one.groups.getDeviceGroup({ id }, stranger))).toBe("RESOURCE_NOT_FOUND");
    expect(await refusal(one.groups.deleteDeviceGroup({ id }, stranger))).toBe("RESOURCE_NOT_FOUND");
    await one.groups.deleteDeviceGroup({ id }, admin);
    expect(await refusal(one.groups.getDeviceGroup({ id }, admin))).toBe("RESOURCE_NOT_FOUND");
  });
});

describe("erasure of an organisation", () => {
  it("is identity's to ask for, leaves nothing, and ends streams", async () => {
    const { orgId, device, admin } = organization();
    const { id, self } = await device();
    const stream = follow(one, id, self);
    await eventually(() => stream.states.length === 1);
    expect(await refusal(one.tenants.eraseTenant({ orgId }, asPeer("rollout")))).toBe("PEER_NOT_ALLOWED");
    const { erased, remaining } = await one.tenants.eraseTenant({ orgId }, asPeer("identity"));
    expect(remaining).toBe(0n);
    expect(erased).toMatchObject({ devices: 1n });
    expect(await stream.ended).toBe("DEVICE_NOT_ACTIVE");
    expect((await one.devices.listDevices({}, admin)).devices).toEqual([]);
  });
});

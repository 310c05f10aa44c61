import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { openTestDatabase, testCall } from "@octomesh/mesh/test/database-fixture";
import { sql } from "kysely";
import { describe, expect, it } from "vitest";
import { registrationGraceMs } from "./registration.ts";
import { abandonedAfterMs } from "./store/registrations.ts";
import { openStore } from "./store.ts";
import type { DeviceRegistryTables } from "./tables.ts";

const database = await openTestDatabase<DeviceRegistryTables>({
  service: "device-registry",
  migrations: new URL("./migrations/", import.meta.url),
});
let nowMs = 1_800_000_000_000;
const clock = { now: () => nowMs };
const store = openStore(database, clock);

const key = Buffer.alloc(32, 1);
const otherKey = Buffer.alloc(32, 2);
const description = {
  displayName: "",
  platform: 0,
  osVersion: "",
  sdkVersion: "1.0",
  appVersion: "",
  manufacturer: "",
  hardwareModel: "",
  labels: {},
};

async function reserved(orgId: string, identifier: string, keyDigest: Buffer | undefined = key, tokenId = "btk_1") {
  const reservation = await store.registrations.reserve(orgId, identifier, { tokenId, keyDigest, time: nowMs });
  if (reservation.kind !== "proceed") throw new Error(`not reserved: ${reservation.kind}`);
  return reservation;
}

async function registered(orgId: string, identifier: string, more: { groupIds?: string[]; approval?: boolean } = {}) {
  const { deviceId, registrationId } = await reserved(orgId, identifier);
  const completion = await store.registrations.complete(testCall(orgId), {
    deviceId,
    registrationId,
    description,
    approvalRequired: more.approval ?? false,
    groupIds: more.groupIds ?? [],
  });
  if (completion.kind !== "completed") throw new Error(completion.kind);
  return completion.device;
}

async function group(orgId: string, displayName: string) {
  return await database.write(testCall(orgId), (tx) =>
    store.deviceGroups.create(tx, { orgId, displayName, description: "" }),
  );
}

function beat(orgId: string, deviceId: string, bootId: string, sequence: number) {
  const versions = { sdkVersion: "", osVersion: "", appVersion: "" };
  return { orgId, deviceId, bootId, sequence: BigInt(sequence), ...versions, timeMs: nowMs };
}

async function reason(work: Promise<unknown>): Promise<Reason | undefined> {
  return await work.then(
    () => undefined,
    (error: unknown) => reasonOf(error),
  );
}

describe("registrations", () => {
  it("hide a device until they are complete, and survive a crash before that", async () => {
    const orgId = newId("org");
    const first = await reserved(orgId, "phone");
    expect(await reason(store.devices.get(orgId, first.deviceId))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await reserved(orgId, "phone")).toEqual(first);
    const issued = { ...first, description, approvalRequired: false, groupIds: [] };
    const completion = await store.registrations.complete(testCall(orgId), issued);
    expect(completion).toMatchObject({ kind: "completed", device: { state: "active", sdkVersion: "1.0" } });
    expect(await reserved(orgId, "phone")).toEqual({ ...first, repeated: true });
    const again = testCall(orgId);
    expect(await store.registrations.complete(again, issued)).toEqual(completion);
    expect(again.audit?.state).toBe("skipped");
  });

  it("free an identifier that identity refused", async () => {
    const orgId = newId("org");
    const first = await reserved(orgId, "phone");
    await store.registrations.abandon(orgId, first.deviceId, first.registrationId);
    const second = await reserved(orgId, "phone", otherKey);
    expect(second.deviceId).not.toBe(first.deviceId);
  });

  it("leave a device as it is when a replacement is given up", async () => {
    const orgId = newId("org");
    const device = await registered(orgId, "phone");
    const replacement = await reserved(orgId, "phone", key, "btk_2");
    await store.registrations.abandon(orgId, device.id, replacement.registrationId);
    expect(await store.devices.get(orgId, device.id)).toEqual(device);
    expect(await reserved(orgId, "phone")).toMatchObject({ repeated: true });
  });

  it("consume a grant once, and keep it from those who failed", async () => {
    const orgId = newId("org");
    const device = await registered(orgId, "phone");
    await store.devices.allowReenrolment(testCall(orgId), device.id);
    const failed = await reserved(orgId, "phone", otherKey);
    await store.registrations.abandon(orgId, device.id, failed.registrationId);
    expect(await store.devices.get(orgId, device.id)).toMatchObject({ reenrolmentGranted: true });
    const taken = await reserved(orgId, "phone", otherKey);
    const issued = { ...taken, description, approvalRequired: true, groupIds: [] };
    expect(await store.registrations.complete(testCall(orgId), issued)).toMatchObject({
      device: { id: device.id, state: "awaiting_approval", reenrolmentGranted: false },
    });
    nowMs += registrationGraceMs;
    const old = { tokenId: "btk_1", keyDigest: key, time: nowMs };
    expect(await store.registrations.reserve(orgId, "phone", old)).toMatchObject({ kind: "refuse", cause: "taken" });
    expect(await store.devices.get(orgId, device.id)).toMatchObject({ cloneSigns: 1 });
  });

  it("do not complete what was revoked, or what lapsed and was taken", async () => {
    const orgId = newId("org");
    const device = await registered(orgId, "phone");
    const again = await reserved(orgId, "phone", key, "btk_2");
    const mark = await store.devices.mark(orgId, device.id);
    expect(await store.devices.revoke(testCall(orgId), device.id, mark)).toMatchObject({ overtaken: true });
    const issued = { ...again, description, approvalRequired: false, groupIds: [] };
    expect(await store.registrations.complete(testCall(orgId), issued)).toEqual({ kind: "revoked" });

    const lapsing = await reserved(orgId, "tablet");
    nowMs += registrationGraceMs;
    const taking = await reserved(orgId, "tablet", otherKey);
    expect(taking.deviceId).toBe(lapsing.deviceId);
    const late = { ...lapsing, description, approvalRequired: false, groupIds: [] };
    expect(await store.registrations.complete(testCall(orgId), late)).toEqual({ kind: "overtaken" });
  });

  it("are swept away a day after they were left behind", async () => {
    const orgId = newId("org");
    const device = await registered(orgId, "phone");
    await reserved(orgId, "tablet");
    nowMs += abandonedAfterMs + 1;
    expect(await store.registrations.sweep()).toBeGreaterThan(0);
    expect(await store.devices.get(orgId, device.id)).toMatchObject({ id: device.id });
    expect(await store.registrations.sweep()).toBe(0);
  });

  it("join the groups of the token that exist", async () => {
    const orgId = newId("org");
    const beta = await group(orgId, "beta");
    const foreign = await group(newId("org"), "beta");
    const device = await registered(orgId, "phone", { groupIds: [beta.id, newId("grp"), foreign.id] });
    expect(device.groupIds).toEqual([beta.id]);
    expect(await store.deviceGroups.get(orgId, beta.id)).toMatchObject({ deviceCount: 1n });
  });
});

describe("devices", () => {
  it("are invisible to other organisations, in every statement", async () => {
    const orgId = newId("org");
    const other = newId("org");
    const { id } = await registered(orgId, "phone");
    const call = testCall(other);
    expect(await reason(store.devices.get(other, id))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await reason(store.devices.mark(other, id))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await reason(store.devices.update(call, { id, etag: "" }))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await reason(store.devices.approve(call, id))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await reason(store.devices.allowReenrolment(call, id))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await reason(store.observedStates.get(other, id))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await store.devices.facts(other, [id])).toEqual(new Map());
    expect(await store.presence.record([beat(other, id, "a", 0)])).toEqual([undefined]);
    const { id: groupId } = await group(other, "beta");
    expect(await reason(store.deviceGroups.addDevices(call, groupId, [id]))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(call.audit?.state).toBe("pending");
  });

  it("show nothing where a statement forgets the organisation", async () => {
    const orgId = newId("org");
    await registered(orgId, "phone");
    for (const table of ["devices", "device_presence", "device_groups", "device_group_members", "observed_models"]) {
      const { rows } = await database.read(newId("org"), (tx) => sql`select from ${sql.table(table)}`.execute(tx));
      expect(rows).toEqual([]);
    }
  });

  it("are listed newest first, page by page, under every filter", async () => {
    const orgId = newId("org");
    const beta = await group(orgId, "beta");
    const devices = [];
    for (const name of ["a", "b", "c", "d"]) {
      nowMs += name === "c" ? 0 : 10;
      devices.unshift(
        await registered(orgId, name, { approval: name === "d", groupIds: name === "b" ? [beta.id] : [] }),
      );
    }
    const [d, c, b, a] = devices.map((device) => device.id);
    const at = { nowMs, heartbeatIntervalMs: 60_000 };
    await store.presence.record([beat(orgId, a ?? "", "boot", 0)]);
    const list = async (filter: object, after?: { createMs: number; id: string }) =>
      (await store.devices.list(orgId, filter, { after, limit: 3 }, at)).map((device) => device.id);
    const first = await store.devices.list(orgId, {}, { after: undefined, limit: 3 }, at);
    const last = first.at(-1);
    const all = [...first.map((device) => device.id), ...(await list({}, last))];
    expect(all).toHaveLength(4);
    expect(new Set(all)).toEqual(new Set([a, b, c, d]));
    expect(all[0]).toBe(d);
    expect(await list({ state: "awaiting_approval" })).toEqual([d]);
    expect(await list({ groupId: beta.id })).toEqual([b]);
    expect(await list({ presence: "online" })).toEqual([a]);
    expect(await list({ presence: "stale" })).toEqual([]);
    expect(new Set(await list({ presence: "offline" }))).toEqual(new Set([b, c, d]));
    expect(await list({ deviceIdentifier: "c" })).toEqual([c]);
    expect(await list({ platform: 3 })).toEqual([]);
  });

  it("change under their etag only", async () => {
    const orgId = newId("org");
    const { id, revision } = await registered(orgId, "phone");
    const etag = `r${revision}`;
    const changed = await store.devices.update(testCall(orgId), { id, displayName: "Lab", labels: { a: "1" }, etag });
    expect(changed).toMatchObject({ displayName: "Lab", labels: { a: "1" }, revision: revision + 1n });
    expect(await reason(store.devices.update(testCall(orgId), { id, displayName: "X", etag }))).toBe(
      Reason.ETAG_MISMATCH,
    );
    expect(await store.devices.update(testCall(orgId), { id, etag: "" })).toMatchObject({ displayName: "Lab" });
  });

  it("are approved once, and never after a revocation", async () => {
    const orgId = newId("org");
    const { id } = await registered(orgId, "phone", { approval: true });
    expect(await store.devices.approve(testCall(orgId), id)).toMatchObject({ state: "active" });
    expect(await store.devices.approve(testCall(orgId), id)).toMatchObject({ state: "active" });
    const mark = await store.devices.mark(orgId, id);
    const revoked = await store.devices.revoke(testCall(orgId), id, mark);
    expect(revoked).toMatchObject({ overtaken: false, device: { state: "revoked" } });
    expect((await store.devices.revoke(testCall(orgId), id, mark)).device).toEqual(revoked.device);
    expect(await reason(store.devices.approve(testCall(orgId), id))).toBe(Reason.ILLEGAL_TRANSITION);
  });
});

describe("presence", () => {
  it("is stored for many organisations in one batch, in order, for active devices only", async () => {
    const [one, two] = [newId("org"), newId("org")];
    const a = await registered(one, "a");
    const b = await registered(two, "b");
    const waiting = await registered(two, "c", { approval: true });
    const unknown = newId("dev");
    const states = await store.presence.record([
      beat(one, a.id, "boot", 0),
      { ...beat(one, a.id, "boot", 1), sdkVersion: "2.0" },
      beat(two, b.id, "boot", 0),
      beat(two, waiting.id, "boot", 0),
      beat(two, unknown, "boot", 0),
    ]);
    expect(states).toEqual(["active", "active", "active", "awaiting_approval", undefined]);
    expect(await store.devices.get(one, a.id)).toMatchObject({
      lastHeartbeatMs: nowMs,
      sdkVersion: "2.0",
      cloneSigns: 0,
    });
    expect(await store.devices.get(two, waiting.id)).toMatchObject({ lastHeartbeatMs: undefined });
  });

  it("counts contradictory boots across batches", async () => {
    const orgId = newId("org");
    const { id } = await registered(orgId, "phone");
    await store.presence.record([beat(orgId, id, "a", 0), beat(orgId, id, "b", 0)]);
    await store.presence.record([beat(orgId, id, "a", 1)]);
    await store.presence.record([beat(orgId, id, "b", 1), beat(orgId, id, "b", 1)]);
    expect(await store.devices.get(orgId, id)).toMatchObject({ cloneSigns: 2 });
  });

  it("does not deadlock when replicas store the same devices in different orders", async () => {
    const orgId = newId("org");
    const ids: string[] = [];
    for (let index = 0; index < 20; index++) ids.push((await registered(orgId, `d${index}`)).id);
    const replica = openStore(await database.reopen(), clock);
    const batches = Array.from({ length: 20 }, (_, round) => {
      const beats = ids.map((id) => beat(orgId, id, "boot", round));
      return (round % 2 === 0 ? store : replica).presence.record(round % 2 === 0 ? beats : beats.reverse());
    });
    expect((await Promise.all(batches)).flat()).toEqual(Array(400).fill("active"));
  });
});

describe("groups", () => {
  it("have names of their own, counts, and pages by name", async () => {
    const orgId = newId("org");
    const beta = await group(orgId, "beta");
    await group(orgId, "alpha");
    await group(newId("org"), "beta");
    expect(await reason(group(orgId, "beta"))).toBe(Reason.RESOURCE_EXISTS);
    const [first] = await store.deviceGroups.list(orgId, { after: undefined, limit: 1 });
    expect(first?.displayName).toBe("alpha");
    const rest = await store.deviceGroups.list(orgId, { after: first, limit: 5 });
    expect(rest.map((each) => each.id)).toEqual([beta.id]);
    const rename = store.deviceGroups.update(testCall(orgId), { id: beta.id, displayName: "alpha", etag: "" });
    expect(await reason(rename)).toBe(Reason.RESOURCE_EXISTS);
  });

  it("take devices in and out, all or none, and leave them when they go", async () => {
    const orgId = newId("org");
    const { id: groupId, revision } = await group(orgId, "beta");
    const a = await registered(orgId, "a");
    const b = await registered(orgId, "b");
    const missing = store.deviceGroups.addDevices(testCall(orgId), groupId, [a.id, newId("dev")]);
    expect(await reason(missing)).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await store.deviceGroups.get(orgId, groupId)).toMatchObject({ deviceCount: 0n, revision });
    const added = await store.deviceGroups.addDevices(testCall(orgId), groupId, [a.id, b.id, a.id]);
    expect(added.deviceCount).toBe(2n);
    expect(await store.deviceGroups.addDevices(testCall(orgId), groupId, [a.id])).toEqual(added);
    expect(await store.deviceGroups.removeDevices(testCall(orgId), groupId, [a.id])).toMatchObject({ deviceCount: 1n });
    await store.deviceGroups.delete(testCall(orgId), groupId);
    expect(await store.devices.get(orgId, b.id)).toMatchObject({ groupIds: [] });
    expect(await reason(store.deviceGroups.delete(testCall(orgId), groupId))).toBe(Reason.RESOURCE_NOT_FOUND);
  });

  it("refuse a device that is in 64 of them", async () => {
    const orgId = newId("org");
    const { id } = await registered(orgId, "phone");
    for (let index = 0; index < 64; index++) {
      await store.deviceGroups.addDevices(testCall(orgId), (await group(orgId, `g${index}`)).id, [id]);
    }
    const last = await group(orgId, "one too many");
    expect(await reason(store.deviceGroups.addDevices(testCall(orgId), last.id, [id]))).toBe(Reason.QUOTA_EXCEEDED);
  });
});

describe("observed states", () => {
  const model = (versionId: string, state: number) => ({
    modelId: "mdl_a",
    versionId,
    state,
    failure: 0,
    previousVersionId: "",
  });

  it("replace each other in order, and are counted by version", async () => {
    const orgId = newId("org");
    const a = await registered(orgId, "a");
    const b = await registered(orgId, "b");
    const report = (deviceId: string, bootId: string, sequence: number, models: ReturnType<typeof model>[]) => ({
      orgId,
      deviceId,
      bootId,
      sequence: BigInt(sequence),
      models,
      timeMs: nowMs,
    });
    const outcomes = await store.observedStates.record([
      report(a.id, "x", 0, [model("mvr_1", 4)]),
      report(a.id, "x", 1, [model("mvr_1", 4), model("mvr_2", 1)]),
      report(a.id, "x", 0, []),
      report(b.id, "y", 0, [model("mvr_1", 4)]),
      report(newId("dev"), "z", 0, []),
    ]);
    expect(outcomes.map((outcome) => outcome.applied)).toEqual([true, true, false, true, false]);
    expect(await store.observedStates.get(orgId, a.id)).toEqual({
      bootId: "x",
      sequence: 1n,
      models: [model("mvr_1", 4), model("mvr_2", 1)],
      updateMs: nowMs,
    });
    expect(await store.observedStates.countVersions(orgId, "mdl_a")).toEqual([
      { versionId: "mvr_1", state: 4, devices: 2n },
      { versionId: "mvr_2", state: 1, devices: 1n },
    ]);
    await store.observedStates.record([report(a.id, "new boot", 0, [model("mvr_2", 4)])]);
    await store.devices.revoke(testCall(orgId), b.id, await store.devices.mark(orgId, b.id));
    expect(await store.observedStates.countVersions(orgId, "mdl_a")).toEqual([
      { versionId: "mvr_2", state: 4, devices: 1n },
    ]);
  });

  it("of a device that reported nothing are nothing", async () => {
    const orgId = newId("org");
    const { id } = await registered(orgId, "phone");
    expect(await store.observedStates.get(orgId, id)).toBeUndefined();
  });
});

describe("erasure", () => {
  it("leaves nothing of one organisation and everything of others", async () => {
    const [orgId, other] = [newId("org"), newId("org")];
    const kept = await registered(other, "phone");
    const gone = await registered(orgId, "phone");
    const { id: groupId } = await group(orgId, "beta");
    await store.deviceGroups.addDevices(testCall(orgId), groupId, [gone.id]);
    const { erased, remaining } = await store.tenant.erase(orgId);
    expect(remaining).toBe(0n);
    expect(erased).toMatchObject({ devices: 1n, device_presence: 1n, device_groups: 1n, device_group_members: 1n });
    // Audit events name devices by their identifiers, and callers by their addresses.
    expect(erased.audit_outbox).toBeGreaterThan(0n);
    expect(await store.devices.get(other, kept.id)).toEqual(kept);
    expect((await store.tenant.erase(orgId)).erased).toMatchObject({ devices: 0n });
  });
});

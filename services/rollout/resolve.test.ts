import { readFileSync } from "node:fs";
import { bucketOf, sliceOf } from "@octomesh/mesh/bucket";
import { newId } from "@octomesh/mesh/ids";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Definition, exposes, indexDefinitions, resolveDevice, stillDelivers } from "./resolve.ts";

const devices = Array.from({ length: 400 }, () => newId("dev"));
const group = newId("grp");
const otherGroup = newId("grp");

let made = 0;
function definition(more: Partial<Definition> = {}): Definition {
  made++;
  return {
    rolloutId: `rol_${made}`,
    modelId: "mdl_a",
    versionId: `mvr_${made}`,
    groupIds: [],
    state: "running",
    percentageThousandths: 100_000,
    controlThousandths: 0,
    priority: 0,
    salt: `salt ${made}`,
    startTimeMs: made * 1000,
    endTimeMs: 0,
    ...more,
  };
}

const versionsOf = (definitions: Definition[], deviceId: string, groupIds: string[] = []) =>
  resolveDevice(indexDefinitions(definitions), { deviceId, groupIds }).map((each) => each.versionId);

describe("resolveDevice", () => {
  it("gives a version to exactly the devices whose bucket says so, and the others keep the completed one", () => {
    const before = definition({ state: "completed", endTimeMs: 1 });
    const rollout = definition({ percentageThousandths: 10_000 });
    for (const deviceId of devices) {
      const isIn = bucketOf(rollout.salt, deviceId) < 10_000;
      expect(versionsOf([before, rollout], deviceId)).toEqual([isIn ? rollout.versionId : before.versionId]);
    }
  });

  it("takes the version from nobody as the share grows", () => {
    const shares = fc.integer({ min: 0, max: 100_000 });
    fc.assert(
      fc.property(
        shares,
        shares,
        fc.integer({ min: 0, max: 50_000 }),
        fc.constantFrom(...devices),
        (a, b, control, id) => {
          const [less, more] = a < b ? [a, b] : [b, a];
          const rollout = definition({ controlThousandths: control });
          const at = (percentageThousandths: number) => exposes({ ...rollout, percentageThousandths }, id);
          if (at(less)) expect(at(more)).toBe(true);
        },
      ),
    );
  });

  it("keeps the control group out until completion", () => {
    const rollout = definition({ controlThousandths: 20_000 });
    const control = devices.filter((deviceId) => bucketOf(rollout.salt, deviceId) >= 80_000);
    expect(control.length).toBeGreaterThan(0);
    for (const deviceId of devices) {
      expect(versionsOf([rollout], deviceId)).toEqual(control.includes(deviceId) ? [] : [rollout.versionId]);
      const completed: Definition = { ...rollout, state: "completed", endTimeMs: 1 };
      expect(versionsOf([completed], deviceId)).toEqual([rollout.versionId]);
    }
  });

  it("returns every device to the last completed version at once when a rollout rolls back", () => {
    const first = definition({ state: "completed", endTimeMs: 1 });
    const second = definition({ state: "completed", endTimeMs: 2 });
    for (const state of ["rolling_back", "rolled_back", "aborted", "draft", "scheduled"] as const) {
      const rollout = definition({ state, percentageThousandths: 50_000 });
      for (const deviceId of devices)
        expect(versionsOf([second, first, rollout], deviceId)).toEqual([second.versionId]);
    }
  });

  it("returns devices to the one before when a completed rollout rolls back", () => {
    const first = definition({ state: "completed", endTimeMs: 1 });
    const second = definition({ state: "rolling_back", percentageThousandths: 0 });
    expect(versionsOf([first, second], devices[0] ?? "")).toEqual([first.versionId]);
    expect(versionsOf([second], devices[0] ?? "")).toEqual([]);
  });

  it("keeps what is exposed while a rollout is paused or waits for approval", () => {
    const rollout = definition({ percentageThousandths: 30_000 });
    for (const deviceId of devices) {
      const running = versionsOf([rollout], deviceId);
      expect(versionsOf([{ ...rollout, state: "paused" }], deviceId)).toEqual(running);
      expect(versionsOf([{ ...rollout, state: "awaiting_approval" }], deviceId)).toEqual(running);
    }
  });

  it("delivers to members of a target's groups alone", () => {
    const rollout = definition({ groupIds: [group] });
    expect(versionsOf([rollout], devices[0] ?? "", [])).toEqual([]);
    expect(versionsOf([rollout], devices[0] ?? "", [otherGroup])).toEqual([]);
    expect(versionsOf([rollout], devices[0] ?? "", [otherGroup, group])).toEqual([rollout.versionId]);
  });

  it("lets priority decide first, then groups before all, then the later start", () => {
    const [deviceId = ""] = devices;
    const everyone = definition();
    const members = definition({ groupIds: [group] });
    const others = definition({ groupIds: [otherGroup] });
    const urgent = definition({ priority: 5, groupIds: [], modelId: "mdl_a" });
    expect(versionsOf([everyone, members], deviceId, [group])).toEqual([members.versionId]);
    expect(versionsOf([others, members], deviceId, [group, otherGroup])).toEqual([others.versionId]);
    expect(versionsOf([members, urgent], deviceId, [group])).toEqual([urgent.versionId]);
  });

  it("lets the rollout under way decide over the completed one of the same target, whatever their priorities", () => {
    const before = definition({ state: "completed", endTimeMs: 1, priority: 9 });
    const rollout = definition();
    expect(versionsOf([before, rollout], devices[0] ?? "")).toEqual([rollout.versionId]);
  });

  it("answers one version for each model, in order of model, whatever the order of the definitions", () => {
    const anyDefinitions = fc.array(
      fc.record({
        modelId: fc.constantFrom("mdl_a", "mdl_b", "mdl_c"),
        groupIds: fc.subarray([group, otherGroup]),
        state: fc.constantFrom("running", "paused", "completed", "rolling_back", "awaiting_approval"),
        percentageThousandths: fc.integer({ min: 0, max: 100_000 }),
        controlThousandths: fc.integer({ min: 0, max: 50_000 }),
        priority: fc.integer({ min: 0, max: 2 }),
        startTimeMs: fc.integer({ min: 0, max: 3 }),
        endTimeMs: fc.integer({ min: 0, max: 3 }),
      }),
      { maxLength: 12 },
    );
    fc.assert(
      fc.property(
        anyDefinitions,
        fc.constantFrom(...devices),
        fc.subarray([group, otherGroup]),
        (some, deviceId, groupIds) => {
          const definitions = some.map((each) => definition(each as Partial<Definition>));
          const decided = resolveDevice(indexDefinitions(definitions), { deviceId, groupIds });
          const models = decided.map((each) => each.modelId);
          expect(models).toEqual([...new Set(models)].sort());
          const reversed = resolveDevice(indexDefinitions([...definitions].reverse()), { deviceId, groupIds });
          expect(reversed).toEqual(decided);
          for (const each of decided) {
            expect(exposes(each, deviceId)).toBe(true);
            expect(each.groupIds.length === 0 || each.groupIds.some((id) => groupIds.includes(id))).toBe(true);
          }
        },
      ),
    );
  });
});

describe("stillDelivers", () => {
  it("honours what was assigned while the rollout exposes the device, and not after its rollback", () => {
    const rollout = definition({ percentageThousandths: 50_000 });
    const inside = devices.find((deviceId) => exposes(rollout, deviceId)) ?? "";
    const outside = devices.find((deviceId) => !exposes(rollout, deviceId)) ?? "";
    const index = indexDefinitions([rollout]);
    expect(stillDelivers(index, rollout.rolloutId, rollout.versionId, inside)).toBe(true);
    expect(stillDelivers(index, rollout.rolloutId, rollout.versionId, outside)).toBe(false);
    expect(stillDelivers(index, rollout.rolloutId, "mvr_other", inside)).toBe(false);
    const rolledBack = indexDefinitions([{ ...rollout, state: "rolling_back" }]);
    expect(stillDelivers(rolledBack, rollout.rolloutId, rollout.versionId, inside)).toBe(false);
  });
});

describe("docs/rollouts.md", () => {
  it("shows test vectors that the bucket function gives", () => {
    const documented = readFileSync(new URL("../../docs/rollouts.md", import.meta.url), "utf8");
    const rows = [...documented.matchAll(/^\| `([^`]+)` \| `(dev_[^`]+)` \| (\d+) \| (\d+) \|$/gm)];
    expect(rows.length).toBeGreaterThan(5);
    for (const [, salt = "", deviceId = "", bucket, slice] of rows) {
      expect([bucketOf(salt, deviceId), sliceOf(salt, deviceId)]).toEqual([Number(bucket), Number(slice)]);
    }
  });
});

import { bucketOf } from "@octomesh/mesh/bucket";
import { Rollout_State as State } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Cohort, placeReport, type RolloutDefinition, type Subject } from "./cohort.ts";
import { sampleDevice, sampleId } from "./test/sample-ids.ts";

const definition: RolloutDefinition = {
  id: sampleId("rol", "a"),
  orgId: sampleId("org", "a"),
  modelId: sampleId("mdl", "a"),
  versionId: sampleId("mvr", "b"),
  priorVersionId: sampleId("mvr", "a"),
  salt: "salt",
  state: State.RUNNING,
  percentage: 30_000,
  control: 20_000,
  priority: 0,
  grouped: false,
  createMs: 1,
};

const subject: Subject = {
  deviceId: sampleDevice(1),
  modelId: definition.modelId,
  versionId: definition.priorVersionId,
  rolloutId: "",
};

const devices = fc.integer({ min: 0, max: 900_000 }).map(sampleDevice);
const shares = fc.integer({ min: 0, max: 100_000 });

describe("placeReport", () => {
  it("divides a fleet by bucket: below the percentage exposed, the top kept out, the rest waiting", () => {
    fc.assert(
      fc.property(devices, shares, fc.integer({ min: 0, max: 50_000 }), (deviceId, percentage, control) => {
        const bucket = bucketOf(definition.salt, deviceId);
        const { cohort } = placeReport({ ...subject, deviceId }, [{ ...definition, percentage, control }]);
        if (bucket >= 100_000 - control) expect(cohort).toBe(Cohort.CONTROL);
        else expect(cohort).toBe(bucket < percentage ? Cohort.EXPOSED : Cohort.WAITING);
      }),
    );
  });

  it("keeps a device in its slice and, once exposed, exposed as the percentage grows", () => {
    fc.assert(
      fc.property(devices, shares, shares, (deviceId, a, b) => {
        const [low, high] = [Math.min(a, b), Math.max(a, b)];
        const before = placeReport({ ...subject, deviceId }, [{ ...definition, percentage: low }]);
        const after = placeReport({ ...subject, deviceId }, [{ ...definition, percentage: high }]);
        expect(after.slice).toBe(before.slice);
        if (before.cohort === Cohort.EXPOSED) expect(after.cohort).toBe(Cohort.EXPOSED);
      }),
    );
  });

  it("spreads each cohort over all 32 slices", () => {
    const slices = new Map<Cohort, Set<number>>();
    for (let number = 0; number < 4000; number++) {
      const { cohort, slice } = placeReport({ ...subject, deviceId: sampleDevice(number) }, [definition]);
      slices.set(cohort, (slices.get(cohort) ?? new Set()).add(slice));
    }
    expect([...slices.keys()].sort()).toEqual([Cohort.EXPOSED, Cohort.CONTROL, Cohort.WAITING]);
    expect([...slices.values()].map(({ size }) => size)).toEqual([32, 32, 32]);
  });

  it("follows assignment and not the version that a device happens to run", () => {
    const all = { ...definition, percentage: 100_000, control: 0 };
    const placements = [definition.versionId, definition.priorVersionId].map((versionId) =>
      placeReport({ ...subject, versionId }, [all]),
    );
    expect(placements.map(({ cohort }) => cohort)).toEqual([Cohort.EXPOSED, Cohort.EXPOSED]);
  });

  it.each([
    ["a draft", { state: State.DRAFT }],
    ["scheduled", { state: State.SCHEDULED }],
    ["rolled back", { state: State.ROLLED_BACK }],
    ["another model's", { modelId: sampleId("mdl", "z") }],
    ["for groups, and the report does not show that the device is in one", { grouped: true }],
    ["completed with another version", { state: State.COMPLETED, versionId: sampleId("mvr", "z") }],
  ])("knows no cohort where the only rollout is %s", (_, change) => {
    const placement = placeReport(subject, [{ ...definition, ...change }]);
    expect(placement).toEqual({ rolloutId: "", cohort: Cohort.NONE, slice: expect.any(Number) });
  });

  it("keeps the rollout that a report names, known or not", () => {
    const rolloutId = sampleId("rol", "z");
    expect(placeReport({ ...subject, rolloutId }, [definition])).toMatchObject({ rolloutId, cohort: Cohort.NONE });
    const ended = { ...definition, id: rolloutId, state: State.ROLLED_BACK, percentage: 100_000, control: 0 };
    expect(placeReport({ ...subject, rolloutId }, [definition, ended])).toMatchObject({
      rolloutId,
      cohort: Cohort.EXPOSED,
    });
  });

  it("resolves overlaps by priority, then groups before all, then age", () => {
    const urgent = { ...definition, id: sampleId("rol", "u"), priority: 9, createMs: 9 };
    const grouped = { ...definition, id: sampleId("rol", "g"), grouped: true, createMs: 9 };
    const older = { ...definition, id: sampleId("rol", "o"), createMs: 0 };
    const onNew = { ...subject, versionId: definition.versionId };
    expect(placeReport(onNew, [older, grouped, urgent, definition]).rolloutId).toBe(urgent.id);
    expect(placeReport(onNew, [older, grouped, definition]).rolloutId).toBe(grouped.id);
    expect(placeReport(subject, [older, grouped, definition]).rolloutId).toBe(older.id);
  });

  it("prefers a rollout under way to one that is completed, whatever its priority", () => {
    const completed = {
      ...definition,
      id: sampleId("rol", "c"),
      state: State.COMPLETED,
      versionId: definition.priorVersionId,
      priority: 1000,
    };
    expect(placeReport(subject, [completed, definition]).rolloutId).toBe(definition.id);
    expect(placeReport(subject, [completed])).toMatchObject({ rolloutId: completed.id, cohort: Cohort.EXPOSED });
  });
});

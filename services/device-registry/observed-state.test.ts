import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { noBoots } from "./boot-order.ts";
import { diffModels, doubledVersion, followReport, type ObservedModelRecord } from "./observed-state.ts";

describe("reports of what a device runs", () => {
  it("apply in the order of boots and numbers", () => {
    let order = noBoots;
    const applied = (
      [
        ["a", 0],
        ["a", 2],
        ["a", 1],
        ["b", 0],
        ["a", 3],
        ["b", 1],
      ] as const
    ).map(([bootId, sequence]) => {
      const next = followReport(order, { bootId, sequence: BigInt(sequence) });
      order = next.order;
      return next.applied;
    });
    expect(applied).toEqual([true, true, false, true, false, true]);
  });

  it("may name a version once", () => {
    const model = { modelId: "mdl_1", versionId: "mvr_1" };
    expect(doubledVersion([model, { ...model, versionId: "mvr_2" }])).toBeUndefined();
    expect(doubledVersion([model, { ...model, modelId: "mdl_2" }, model])).toBe("mvr_1");
  });

  it("are stored by the least that makes the stored the reported", () => {
    const models = fc.uniqueArray(
      fc.record<ObservedModelRecord>({
        modelId: fc.constantFrom("mdl_1", "mdl_2"),
        versionId: fc.constantFrom("mvr_1", "mvr_2", "mvr_3"),
        state: fc.integer({ min: 1, max: 3 }),
        failure: fc.constantFrom(0, 1),
        previousVersionId: fc.constantFrom("", "mvr_1"),
      }),
      { selector: (model) => `${model.modelId} ${model.versionId}` },
    );
    const byKey = (list: readonly ObservedModelRecord[]) =>
      new Map(list.map((model) => [`${model.modelId} ${model.versionId}`, model]));
    fc.assert(
      fc.property(models, models, (stored, reported) => {
        const { upsert, remove } = diffModels(stored, reported);
        const result = byKey(stored);
        for (const key of byKey(remove).keys()) result.delete(key);
        for (const [key, model] of byKey(upsert)) {
          expect(result.get(key)).not.toEqual(model);
          result.set(key, model);
        }
        expect(result).toEqual(byKey(reported));
      }),
    );
  });
});

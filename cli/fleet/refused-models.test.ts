import { describe, expect, test } from "vitest";
import { refusedModels } from "./refused-models.ts";

describe("refusedModels", () => {
  test("counts a model once for each device, however often it is refused", () => {
    const refused = refusedModels();
    refused.refuse(0, "mdl_a", "DOWNLOAD");
    refused.refuse(0, "mdl_a", "ARTIFACT_DIGEST");
    refused.refuse(0, "mdl_b", "ARTIFACT_DIGEST");
    refused.refuse(1, "mdl_a", "LOAD");
    expect([refused.count(), refused.devices()]).toEqual([3, 2]);
    expect(refused.byKind()).toEqual({ ARTIFACT_DIGEST: 2, LOAD: 1 });
  });

  test("forgets a refusal when a version of the model becomes active", () => {
    const refused = refusedModels();
    refused.refuse(0, "mdl_a", "DOWNLOAD");
    refused.accept(0, "mdl_b");
    expect(refused.count()).toBe(1);
    refused.accept(0, "mdl_a");
    refused.accept(7, "mdl_a");
    expect([refused.count(), refused.devices(), refused.byKind()]).toEqual([0, 0, {}]);
  });
});

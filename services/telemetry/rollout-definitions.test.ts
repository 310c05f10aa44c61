import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { WatchRolloutDefinitionsResponseSchema } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { Rollout_State as State } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { describe, expect, it } from "vitest";
import { createRolloutDefinitions } from "./rollout-definitions.ts";
import { sampleId } from "./test/sample-ids.ts";

const orgId = sampleId("org", "a");
const modelId = sampleId("mdl", "a");
const versionId = sampleId("mvr", "a");

function message(init: MessageInitShape<typeof WatchRolloutDefinitionsResponseSchema>) {
  return create(WatchRolloutDefinitionsResponseSchema, init);
}

function rollout(letter: string, percentageThousandths = 0, state = State.RUNNING) {
  return { id: sampleId("rol", letter), orgId, modelId, versionId, percentageThousandths, state };
}

describe("rollout definitions", () => {
  it("are known once the stream has caught up, and change with it", () => {
    const definitions = createRolloutDefinitions();
    expect(definitions.caughtUp).toBe(false);
    definitions.apply(message({ cursor: "1", rollouts: [rollout("a", 10_000)] }));
    expect(definitions.caughtUp).toBe(false);
    definitions.apply(message({ cursor: "2", caughtUp: true }));
    expect(definitions.caughtUp).toBe(true);
    definitions.apply(message({ cursor: "3", rollouts: [rollout("a", 50_000), rollout("b")] }));
    expect(definitions.cursor).toBe("3");
    expect(definitions.of(orgId, modelId).map(({ id, percentage }) => [id, percentage])).toEqual([
      [sampleId("rol", "a"), 50_000],
      [sampleId("rol", "b"), 0],
    ]);
    expect(definitions.of(sampleId("org", "b"), modelId)).toEqual([]);
  });

  it("forget a deleted rollout, but not whose its model is", () => {
    const definitions = createRolloutDefinitions();
    definitions.apply(message({ rollouts: [rollout("a")], caughtUp: true }));
    definitions.apply(message({ rollouts: [rollout("a", 0, State.ABORTED)] }));
    expect(definitions.of(orgId, modelId)).toEqual([]);
    expect(definitions.ownerOf(modelId)).toBe(orgId);
    expect(definitions.ownerOf(sampleId("mdl", "z"))).toBeUndefined();
  });

  it("keep what they hold while a restarted stream catches up, and then only what it sent", () => {
    const definitions = createRolloutDefinitions();
    definitions.apply(message({ cursor: "9", rollouts: [rollout("a"), rollout("b")], caughtUp: true }));
    definitions.restart();
    expect(definitions.cursor).toBe("");
    definitions.apply(message({ cursor: "1", rollouts: [rollout("b"), rollout("c")] }));
    expect(definitions.caughtUp).toBe(true);
    expect(definitions.of(orgId, modelId).map(({ id }) => id)).toEqual([sampleId("rol", "a"), sampleId("rol", "b")]);
    definitions.apply(message({ cursor: "2", caughtUp: true }));
    expect(definitions.of(orgId, modelId).map(({ id }) => id)).toEqual([sampleId("rol", "b"), sampleId("rol", "c")]);
  });
});

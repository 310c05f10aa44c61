import { create } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { AggregateFilterSchema } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { describe, expect, it } from "vitest";
import { aggregateQueryOf } from "./aggregate-query.ts";

const now = Date.UTC(2026, 0, 1, 12, 0, 30);

describe("aggregateQueryOf", () => {
  it("asks for the last hour by the minute where nothing is said", () => {
    expect(aggregateQueryOf(undefined, now)).toEqual({
      modelId: "",
      versionId: "",
      rolloutId: "",
      startMs: Date.UTC(2026, 0, 1, 11, 0),
      endMs: Date.UTC(2026, 0, 1, 12, 1),
      widthMs: 60_000,
      bySlice: false,
    });
  });

  it("asks for the hour before an end that is given alone", () => {
    const endTime = timestampFromMs(now - 86_400_000);
    const query = aggregateQueryOf(create(AggregateFilterSchema, { endTime }), now);
    expect(query.startMs).toBe(Date.UTC(2025, 11, 31, 11, 0));
  });

  it.each([
    ["an end before the beginning", { startTime: timestampFromMs(now), endTime: timestampFromMs(now - 1) }],
    ["an empty stretch", { startTime: timestampFromMs(now), endTime: timestampFromMs(now) }],
    ["a width that is not whole minutes", { width: durationFromMs(90_000) }],
  ])("refuses %s", (_, filter) => {
    const refused = () => aggregateQueryOf(create(AggregateFilterSchema, filter), now);
    expect(refused).toThrow();
    try {
      refused();
    } catch (error) {
      expect(reasonOf(error)).toBe(Reason.VALIDATION_FAILED);
    }
  });
});

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ReportTelemetryRequestSchema } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { describe, expect, it } from "vitest";
import { sampleId } from "./test/sample-ids.ts";
import { findUnknownFields } from "./unknown-fields.ts";

const secret = "what the user typed";

/** A message of one field that no contract knows, holding a text. */
function foreign(number: number): Uint8Array {
  return new BinaryWriter().tag(number, WireType.LengthDelimited).string(secret).finish();
}

/** A field with a message of the given bytes. */
function field(number: number, bytes: Uint8Array): Uint8Array {
  return new BinaryWriter().tag(number, WireType.LengthDelimited).bytes(bytes).finish();
}

function read(...parts: Uint8Array[]) {
  return fromBinary(ReportTelemetryRequestSchema, Buffer.concat(parts));
}

describe("findUnknownFields", () => {
  it("finds nothing in a message that the contract knows whole", () => {
    const request = create(ReportTelemetryRequestSchema, {
      id: sampleId("dev", "a"),
      bootId: "boot",
      reports: [{ kind: { case: "health", value: { measureTime: timestampFromMs(1), batteryPercent: 3 } } }],
    });
    const reread = fromBinary(ReportTelemetryRequestSchema, toBinary(ReportTelemetryRequestSchema, request));
    expect(findUnknownFields(ReportTelemetryRequestSchema, reread)).toEqual([]);
  });

  it("names fields by path and number at every depth, in lists, oneofs and well-known messages", () => {
    const measureTime = field(1, foreign(77));
    const health = field(1, Buffer.concat([measureTime, foreign(99)]));
    const request = read(foreign(1000), field(5, new Uint8Array()), field(5, Buffer.concat([foreign(50), health])));
    expect(findUnknownFields(ReportTelemetryRequestSchema, request)).toEqual([
      { path: "", number: 1000 },
      { path: "reports[1]", number: 50 },
      { path: "reports[1].health", number: 99 },
      { path: "reports[1].health.measure_time", number: 77 },
    ]);
  });

  it("never tells what a field holds", () => {
    const found = findUnknownFields(ReportTelemetryRequestSchema, read(foreign(1000), field(5, foreign(9))));
    expect(found).toHaveLength(2);
    expect(JSON.stringify(found)).not.toContain(secret);
  });
});

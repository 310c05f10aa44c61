import type { JsonValue } from "@bufbuild/protobuf";
import { ReportTelemetryRequestSchema } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { describe, expect, it } from "vitest";
import { Reason, reasonOf } from "./errors.ts";
import { findUnknownKeys, refuseUnknownKeys } from "./unknown-json-keys.ts";

describe("findUnknownKeys", () => {
  it("finds nothing in what the contract knows, in either form of its names", () => {
    const json = {
      boot_id: "b",
      contractMinor: 1,
      reports: [{ health: { measure_time: "2026-01-01T00:00:00Z", battery_percent: 3, uptime: "3s" } }, null, 4],
    };
    expect(findUnknownKeys(ReportTelemetryRequestSchema, json)).toEqual([]);
  });

  it("tells where each unknown key stands, and no value", () => {
    const json: JsonValue = { note: "typed text", reports: [{}, { health: { note: "typed text", "typed text": 1 } }] };
    expect(findUnknownKeys(ReportTelemetryRequestSchema, json)).toEqual([
      "note",
      "reports[1].health.note",
      "reports[1].health.?",
    ]);
  });

  it("does bounded work on what is not what it claims to be", () => {
    expect(findUnknownKeys(ReportTelemetryRequestSchema, "text")).toEqual([]);
    expect(findUnknownKeys(ReportTelemetryRequestSchema, { reports: { health: 1 } })).toEqual([]);
    const many = Object.fromEntries(Array.from({ length: 10_000 }, (_, index) => [`key${index}`, index]));
    expect(findUnknownKeys(ReportTelemetryRequestSchema, many)).toHaveLength(32);
  });

  it("is what a document is refused by", () => {
    expect(() => refuseUnknownKeys(ReportTelemetryRequestSchema, { boot_id: "b" })).not.toThrow();
    try {
      refuseUnknownKeys(ReportTelemetryRequestSchema, { note: "typed text" });
      expect.unreachable();
    } catch (error) {
      expect(reasonOf(error)).toBe(Reason.UNKNOWN_FIELD);
      expect(String(error)).not.toContain("typed text");
    }
  });
});

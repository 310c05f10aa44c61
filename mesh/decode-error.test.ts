import { type DescMessage, fromJson, type JsonValue } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { RegisterDeviceRequestSchema } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { CreateModelRequestSchema } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { ReportTelemetryRequestSchema } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { expect, test } from "vitest";
import { decodeRefusal } from "./decode-error.ts";
import { Reason, reasonOf } from "./errors.ts";

const typed = "what the user typed, got nothing";
const cases: [DescMessage, JsonValue, string][] = [
  [CreateModelRequestSchema, { name: 5 }, "octomesh.model.v1.CreateModelRequest.name: expected string"],
  [
    CreateModelRequestSchema,
    { name: { [typed]: typed } },
    "octomesh.model.v1.CreateModelRequest.name: expected string",
  ],
  [RegisterDeviceRequestSchema, { platform: typed }, "octomesh.device.v1.Platform: there is no such value"],
  [
    RegisterDeviceRequestSchema,
    { labels: { [typed]: 5 } },
    "octomesh.device.v1.RegisterDeviceRequest.labels: expected string",
  ],
  [
    ReportTelemetryRequestSchema,
    { reports: [{ latency: { milliseconds: [typed] } }] },
    "octomesh.telemetry.v1.LatencyReport.milliseconds, list item #1: expected number (float64)",
  ],
  [
    ReportTelemetryRequestSchema,
    { reports: typed },
    "octomesh.telemetry.v1.ReportTelemetryRequest.reports: expected Array",
  ],
];

test.each(cases.map(([schema, json, message]) => [message, { schema, json }] as const))("%s", (message, given) => {
  const { schema, json } = given;
  let thrown: unknown;
  try {
    fromJson(schema, json);
  } catch (error) {
    thrown = error;
  }
  const wire = new ConnectError(`cannot decode message: ${(thrown as Error).message}`, Code.InvalidArgument);
  const refused = decodeRefusal(wire);
  expect([refused?.rawMessage, refused && reasonOf(refused)]).toEqual([message, Reason.VALIDATION_FAILED]);
  expect(refused?.rawMessage).not.toContain("typed");
});

test("other errors are none of its business", () => {
  expect(decodeRefusal(new ConnectError("there is no such model", Code.NotFound))).toBeUndefined();
});

import { create } from "@bufbuild/protobuf";
import { Verdict_Alarm as Alarm, VerdictSchema } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import { expect, test } from "vitest";
import { restSchemas } from "../../tools/rest-shapes.mjs";
import { verdictJson } from "./verdict-json.ts";

const whole = create(VerdictSchema, {
  sessionRef: "session-1",
  country: "DE",
  confidence: 0.91,
  alarm: Alarm.MEDIUM,
  estimatedLocation: { latitude: 52.5, longitude: 13.4 },
  confidenceRadiusKm: 350,
  feasibleRegion: [
    { latitude: 52.7, longitude: 13 },
    { latitude: -1, longitude: -179.9 },
  ],
  token: "eyJ",
  nonce: "n-1",
  modelVersion: "disk-1",
});

test("a verdict is shown in Octet's shape, and nothing more", () => {
  expect(verdictJson(whole)).toEqual({
    country: "DE",
    confidence: 0.91,
    alarm: "medium",
    estimatedLocation: { lat: 52.5, lon: 13.4 },
    confidenceRadiusKm: 350,
    feasibleRegion: [
      { lat: 52.7, lon: 13 },
      { lat: -1, lon: -179.9 },
    ],
    token: "eyJ",
  });
});

test("what is not known is absent", () => {
  expect(verdictJson(create(VerdictSchema, { sessionRef: "a", alarm: Alarm.NONE }))).toEqual({
    confidence: 0,
    alarm: "none",
  });
  expect(() => verdictJson(create(VerdictSchema, { sessionRef: "a" }))).toThrow("alarm");
});

test("the OpenAPI document says the same", () => {
  const { properties, required } = restSchemas["rest.Verdict"];
  expect(Object.keys(properties).sort()).toEqual(Object.keys(verdictJson(whole)).sort());
  expect([...required].sort()).toEqual(
    Object.keys(verdictJson(create(VerdictSchema, { sessionRef: "a", alarm: Alarm.NONE }))).sort(),
  );
  const alarms = [Alarm.NONE, Alarm.LOW, Alarm.MEDIUM, Alarm.HIGH].map(
    (alarm) => verdictJson(create(VerdictSchema, { alarm })).alarm,
  );
  expect(properties.alarm?.enum).toEqual(alarms);
  const { estimatedLocation } = verdictJson(whole);
  expect(Object.keys(restSchemas["rest.Place"].properties)).toEqual(Object.keys(estimatedLocation ?? {}));
});

import { ConnectError } from "@connectrpc/connect";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { ErrorInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { readCollectorReport } from "./collector-report.ts";

const whole = {
  v: 1,
  ref: "session-1",
  nonce: "nonce-of-the-page",
  mode: "full",
  channel: "c1",
  env: { languages: ["de-DE", "en"], tz: "Europe/Berlin", offset: -60, platform: "Windows", mobile: false },
  timing: { step: 0.1, rt: [{ url: "https://edge.example", n: 12, min: 20.5, med: 22 }], pings: 20, ms: 812 },
  landmarks: [{ url: "wss://edge2.example/v1/ws", m: Buffer.from("signed").toString("base64url") }],
  end: "done",
};

function bytesOf(report: unknown): Uint8Array {
  return new TextEncoder().encode(typeof report === "string" ? report : JSON.stringify(report));
}

function problemOf(report: unknown): string {
  try {
    readCollectorReport(report instanceof Uint8Array ? report : bytesOf(report));
    return "taken";
  } catch (error) {
    if (!(error instanceof ConnectError)) throw error;
    const { field } = error.findDetails(ErrorInfoSchema)[0]?.metadata ?? {};
    const reason = Reason[reasonOf(error) ?? Reason.INTERNAL] ?? "";
    return field === undefined ? reason : `${reason} ${field}`;
  }
}

test("reads what the collector writes", () => {
  expect(readCollectorReport(bytesOf(whole))).toEqual({
    version: 1,
    sessionRef: "session-1",
    nonce: "nonce-of-the-page",
    mode: "full",
    languages: ["de-DE", "en"],
    timeZone: "Europe/Berlin",
    utcOffsetMinutes: 60,
    platform: "Windows",
    mobile: false,
    clockStepMs: 0.1,
    roundTrips: [{ url: "https://edge.example", count: 12, minMs: 20.5, medianMs: 22 }],
    measurements: [new Uint8Array(Buffer.from("signed"))],
    end: "done",
  });
});

test("what is absent is empty", () => {
  expect(readCollectorReport(bytesOf({ v: 1, ref: "a", mode: "passive" }))).toEqual({
    version: 1,
    sessionRef: "a",
    nonce: "",
    mode: "passive",
    languages: [],
    timeZone: "",
    utcOffsetMinutes: undefined,
    platform: "",
    mobile: undefined,
    clockStepMs: 100,
    roundTrips: [],
    measurements: [],
    end: "",
  });
});

test("newer collectors are taken, and what they say more is passed over", () => {
  const newer = { ...whole, v: 7, extra: { deep: [1, { x: 2 }] }, env: { ...whole.env, colour: "red" } };
  const { version: _, ...rest } = readCollectorReport(bytesOf(newer));
  const { version: __, ...expected } = readCollectorReport(bytesOf(whole));
  expect(rest).toEqual(expected);
});

test.each<[string, unknown, string]>([
  ["no JSON", "{", "SIGNALS_INCOMPLETE report"],
  ["another kind of JSON", [1], "SIGNALS_INCOMPLETE report"],
  ["nothing", "", "SIGNALS_INCOMPLETE report"],
  ["bytes that are no UTF-8", new Uint8Array([0x7b, 0xff, 0x7d]), "SIGNALS_INCOMPLETE report"],
  ["no version", { ...whole, v: undefined }, "SIGNALS_INCOMPLETE v"],
  ["a version in words", { ...whole, v: "1" }, "SIGNALS_INCOMPLETE v"],
  ["no reference", { ...whole, ref: "" }, "SIGNALS_INCOMPLETE ref"],
  ["a long reference", { ...whole, ref: "a".repeat(129) }, "SIGNALS_INCOMPLETE ref"],
  ["half a character", `{"v":1,"ref":"\\ud800","mode":"full"}`, "SIGNALS_INCOMPLETE ref"],
  ["a long nonce", { ...whole, nonce: "n".repeat(129) }, "SIGNALS_INCOMPLETE nonce"],
  ["no mode", { ...whole, mode: undefined }, "SIGNALS_INCOMPLETE mode"],
  ["many languages", { ...whole, env: { languages: Array(11).fill("de") } }, "SIGNALS_INCOMPLETE env.languages"],
  ["an endless number", `{"v":1,"ref":"a","mode":"full","timing":{"step":1e999}}`, "SIGNALS_INCOMPLETE timing.step"],
  ["a negative time", { ...whole, timing: { step: -1 } }, "SIGNALS_INCOMPLETE timing.step"],
  ["many round trips", { ...whole, timing: { rt: Array(17).fill({}) } }, "SIGNALS_INCOMPLETE timing.rt"],
  ["many landmarks", { ...whole, landmarks: Array(17).fill({ m: "aa" }) }, "SIGNALS_INCOMPLETE landmarks"],
  ["a landmark that is no base64url", { ...whole, landmarks: [{ m: "a+b" }] }, "SIGNALS_INCOMPLETE landmarks.m"],
  ["a long landmark", { ...whole, landmarks: [{ m: "a".repeat(5701) }] }, "SIGNALS_INCOMPLETE landmarks.m"],
  ["a list instead of an object", { ...whole, env: [] }, "SIGNALS_INCOMPLETE env"],
  ["an old collector", { ...whole, v: 0 }, "CLIENT_TOO_OLD"],
  ["a large report", new Uint8Array(65_537).fill(0x20), "REQUEST_TOO_LARGE"],
])("refuses %s", (_name, report, problem) => {
  expect(problemOf(report)).toBe(problem);
});

describe("nesting", () => {
  const nested = (depth: number) => `{"v":1,"ref":"a","mode":"full","x":${"[".repeat(depth)}${"]".repeat(depth)}}`;

  test("is bounded before the text is parsed", () => {
    expect(problemOf(nested(7))).toBe("taken");
    expect(problemOf(nested(8))).toBe("SIGNALS_INCOMPLETE report");
    expect(problemOf("[".repeat(65_536))).toBe("SIGNALS_INCOMPLETE report");
    expect(problemOf('{"a":'.repeat(13_000))).toBe("SIGNALS_INCOMPLETE report");
  });

  test("is not counted within strings", () => {
    const text = '[{"'.repeat(100);
    expect(problemOf({ ...whole, extra: text, more: `\\"${text}\\` })).toBe("taken");
  });
});

test("whatever the bytes, there is a report within its bounds or a refusal that shows nothing of them", () => {
  const some = fc.oneof(
    fc.uint8Array({ maxLength: 500 }),
    fc.json({ maxDepth: 12 }).map(bytesOf),
    fc
      .record(
        {
          v: fc.oneof(fc.integer({ min: -2, max: 5 }), fc.anything()),
          ref: fc.oneof(fc.string({ maxLength: 140 }), fc.anything()),
          nonce: fc.oneof(fc.string({ maxLength: 140 }), fc.anything()),
          mode: fc.oneof(fc.constant("full"), fc.anything()),
          env: fc.oneof(fc.record({ languages: fc.anything(), tz: fc.anything(), offset: fc.double() }), fc.anything()),
          timing: fc.oneof(fc.record({ step: fc.double(), rt: fc.array(fc.anything()) }), fc.anything()),
          landmarks: fc.oneof(fc.array(fc.record({ m: fc.string() })), fc.anything()),
        },
        { requiredKeys: [] },
      )
      .map((report) => {
        try {
          return bytesOf(JSON.stringify(report, (_, value) => (typeof value === "bigint" ? String(value) : value)));
        } catch {
          return bytesOf("{}");
        }
      }),
  );
  fc.assert(
    fc.property(some, (bytes) => {
      try {
        const report = readCollectorReport(bytes);
        expect([...report.sessionRef].length).toBeLessThanOrEqual(128);
        expect(report.languages.length).toBeLessThanOrEqual(10);
        expect(report.clockStepMs).toBeGreaterThanOrEqual(0);
        expect(report.measurements.length).toBeLessThanOrEqual(16);
        for (const each of [report.clockStepMs, report.utcOffsetMinutes ?? 0]) expect(Number.isFinite(each)).toBe(true);
      } catch (error) {
        const reason = reasonOf(error);
        if (reason === undefined) throw error;
        expect([Reason.SIGNALS_INCOMPLETE, Reason.CLIENT_TOO_OLD, Reason.REQUEST_TOO_LARGE]).toContain(reason);
      }
    }),
    { numRuns: 1000 },
  );
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { createBudget, onAbort } from "./budget.ts";
import { readServerMessage } from "./channel.ts";
import { measureClockStep, unknownStepMs } from "./clock-step.ts";
import { readEnvironment } from "./environment.ts";
import { OctetError } from "./octet-error.ts";
import { readOptions } from "./options.ts";
import { encodeReport, maxReportBytes, type Report } from "./report.ts";
import { summarizeRoundTrips } from "./round-trips.ts";
import { readAnswer } from "./send-report.ts";
import { sessionDigest } from "./session-digest.ts";

const base = "https://shop.example/cart";
const good = { apiUrl: "https://edge.example/octet", sessionRef: "sess_1" };

function codeOf(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    return error instanceof OctetError ? `${error.code} ${error.message}` : `unexpected: ${error}`;
  }
  return "nothing";
}

describe("options", () => {
  test("have their defaults", () => {
    expect(readOptions(good, base)).toEqual({
      apiUrl: "https://edge.example/octet",
      sessionRef: "sess_1",
      wsUrl: "wss://edge.example/octet/v1/ws",
      mode: "full",
      nonce: undefined,
      landmarks: [],
      signal: undefined,
    });
  });

  test.each([
    ["/octet/", "https://shop.example/octet", "wss://shop.example/octet/v1/ws"],
    ["https://edge.example//", "https://edge.example", "wss://edge.example/v1/ws"],
    ["http://localhost:8090", "http://localhost:8090", "ws://localhost:8090/v1/ws"],
  ])("take %s as %s", (apiUrl, expected, wsUrl) => {
    expect(readOptions({ ...good, apiUrl }, base)).toMatchObject({ apiUrl: expected, wsUrl });
  });

  test("take an empty nonce for none", () => {
    expect(readOptions({ ...good, nonce: "" }, base).nonce).toBeUndefined();
  });

  test("name each landmark once", () => {
    const landmarks = ["wss://a.example/v1/ws", "wss://A.example/v1/ws#x", "wss://b.example/v1/ws"];
    expect(readOptions({ ...good, landmarks }, base).landmarks).toEqual([landmarks[0], landmarks[2]]);
  });

  test.each<[string, object]>([
    ["apiUrl", { apiUrl: undefined }],
    ["apiUrl", { apiUrl: "ftp://edge.example" }],
    ["apiUrl", { apiUrl: "http://edge.example" }],
    ["apiUrl", { apiUrl: "https://me:secret@edge.example" }],
    ["apiUrl", { apiUrl: "https://edge.example/?a=b" }],
    ["apiUrl", { apiUrl: `https://edge.example/${"a".repeat(600)}` }],
    ["sessionRef", { sessionRef: undefined }],
    ["sessionRef", { sessionRef: "a".repeat(129) }],
    ["sessionRef", { sessionRef: "a/b" }],
    ["nonce", { nonce: "short" }],
    ["wsUrl", { wsUrl: "https://edge.example" }],
    ["landmarks", { landmarks: "wss://a.example" }],
    ["landmarks", { landmarks: ["https://a.example"] }],
    ["landmarks", { landmarks: Array(17).fill("wss://a.example") }],
    ["signal", { signal: {} }],
    ["mode", { mode: "loud" }],
    ["passiveOnly", { passiveOnly: "yes" }],
    ["passiveOnly", { passiveOnly: true, mode: "full" }],
  ])("are refused by name: %s of %o", (name, wrong) => {
    expect(codeOf(() => readOptions({ ...good, ...wrong }, base))).toMatch(
      new RegExp(`^invalid_options octet: ${name} `),
    );
  });

  test("of any shape are read or refused, and nothing else", () => {
    fc.assert(
      fc.property(fc.anything(), fc.anything(), fc.anything(), (apiUrl, nonce, landmarks) => {
        const code = codeOf(() => readOptions({ ...good, apiUrl, nonce, landmarks }, base));
        return code === "nothing" || code.startsWith("invalid_options ");
      }),
    );
  });
});

describe("a budget", () => {
  test("ends with its time, and is then over", async () => {
    const budget = createBudget(1);
    await new Promise<void>((resolve) => onAbort(budget.signal, resolve));
    expect(budget.ended).toBe("timeout");
  });

  test("ends with the caller's signal, even one that fired before", () => {
    const outer = new AbortController();
    const budget = createBudget(60_000, outer.signal);
    expect([budget.signal.aborted, budget.ended]).toEqual([false, undefined]);
    outer.abort();
    expect([budget.signal.aborted, budget.ended]).toEqual([true, "aborted"]);
    expect(createBudget(60_000, outer.signal).ended).toBe("aborted");
  });

  test("that was closed closes what is open, and names no cause", () => {
    const outer = new AbortController();
    const budget = createBudget(60_000, outer.signal);
    budget.close();
    outer.abort();
    expect([budget.signal.aborted, budget.ended]).toEqual([true, undefined]);
  });
});

describe("the clock's step", () => {
  test.each([0.005, 0.1, 1, 16.5])("is found: %d ms", (step) => {
    let reading = 0;
    expect(measureClockStep(() => Math.floor(reading++ / 7) * step)).toBeCloseTo(step, 6);
  });

  test("of a clock that stands still is unknown", () => {
    expect(measureClockStep(() => 42)).toBe(unknownStepMs);
  });
});

describe("round trips", () => {
  const entry = (name: string, wait: number) => ({ name, requestStart: 10, responseStart: 10 + wait });

  test("are the least and the median, each request once", () => {
    const entries = [entry("a", 5), entry("b", 3), entry("a", 1), entry("c", 9), entry("other", 0.1)];
    expect(summarizeRoundTrips("o", ["a", "b", "c"], entries)).toEqual({ url: "o", n: 3, min: 3, med: 5 });
    expect(summarizeRoundTrips("o", ["a", "b"], entries)).toEqual({ url: "o", n: 2, min: 3, med: 4 });
  });

  test("without Timing-Allow-Origin are none", () => {
    const hidden = { name: "a", requestStart: 0, responseStart: 0 };
    expect(summarizeRoundTrips("o", ["a", "b"], [hidden])).toBeUndefined();
  });

  test("have a median between the least and the most", () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0, max: 5_000, noNaN: true }), { minLength: 1, maxLength: 20 }),
        (waits) => {
          const entries = waits.map((wait, index) => entry(String(index), wait));
          const summary = summarizeRoundTrips("o", Object.keys(waits), entries);
          expect(summary?.n).toBe(waits.length);
          expect(summary?.min).toBeCloseTo(Math.min(...waits), 2);
          expect(summary?.med).toBeGreaterThanOrEqual(summary?.min ?? Number.NaN);
          expect(summary?.med).toBeLessThanOrEqual(Math.max(...waits) + 0.001);
        },
      ),
    );
  });
});

describe("a message of the server", () => {
  test("is read", () => {
    expect(readServerMessage('{"t":"hello","channel":"abc","landmarks":["wss://a"],"v":1}')).toEqual({
      t: "hello",
      channel: "abc",
      landmarks: ["wss://a"],
    });
    expect(readServerMessage('{"t":"done","pings":20,"m":"QUJD"}')).toEqual({
      t: "done",
      pings: 20,
      measurement: "QUJD",
    });
    expect(readServerMessage('{"t":"done","pings":0}')).toEqual({ t: "done", pings: 0, measurement: undefined });
  });

  test.each([
    "",
    "null",
    "[]",
    "{",
    '{"t":"hello"}',
    '{"t":"hello","channel":"a b"}',
    '{"t":"hello","channel":"a","landmarks":{}}',
    '{"t":"done"}',
    '{"t":"done","pings":-1}',
    '{"t":"done","pings":41}',
    '{"t":"done","pings":1.5}',
    `{"t":"done","pings":1,"m":"${"a".repeat(20_000)}"}`,
  ])("is refused: %s", (text) => {
    expect(readServerMessage(text)).toBeUndefined();
  });

  test("of any text is read or refused, and never throws", () => {
    fc.assert(fc.property(fc.oneof(fc.string(), fc.json(), fc.anything()), (data) => void readServerMessage(data)));
  });
});

describe("the environment", () => {
  test("prefers what the browser states", () => {
    const navigator = {
      languages: ["de-DE", "en"],
      platform: "Linux x86_64",
      userAgentData: { platform: "Linux", mobile: false },
    };
    expect(readEnvironment(navigator, "Europe/Berlin", -60)).toEqual({
      languages: ["de-DE", "en"],
      tz: "Europe/Berlin",
      offset: -60,
      platform: "Linux",
      mobile: false,
    });
    expect(readEnvironment({ language: "fr", platform: "MacIntel" }, "", 0)).toEqual({
      languages: ["fr"],
      tz: "",
      offset: 0,
      platform: "MacIntel",
    });
  });

  test("is bounded", () => {
    fc.assert(
      fc.property(fc.array(fc.string({ maxLength: 80 })), fc.string({ maxLength: 200 }), (languages, text) => {
        const read = readEnvironment({ languages, platform: text }, text, 0);
        expect(read.languages.length).toBeLessThanOrEqual(10);
        expect(Math.max(0, ...read.languages.map(({ length }) => length))).toBeLessThanOrEqual(35);
        expect(Math.max(read.tz.length, read.platform.length)).toBeLessThanOrEqual(64);
      }),
    );
  });
});

describe("a report", () => {
  const report: Report = {
    v: 1,
    ref: "sess_1",
    mode: "full",
    env: { languages: ["en"], tz: "UTC", offset: 0, platform: "Linux" },
    timing: { step: 0.1, pings: 20, ms: 900 },
    end: "done",
  };

  test("goes as it is where it fits", () => {
    const landmarks = [{ url: "wss://a.example/v1/ws", m: "QUJD" }];
    expect(JSON.parse(encodeReport(report))).toEqual(report);
    expect(JSON.parse(encodeReport({ ...report, landmarks }))).toEqual({ ...report, landmarks });
  });

  test("of the largest parts keeps the landmarks that fit, in their order", () => {
    const landmarks = Array.from({ length: 16 }, (_, n) => ({
      url: `wss://l${n}/${"a".repeat(500)}`,
      m: "m".repeat(5_700),
    }));
    const languages = Array.from({ length: 10 }, () => "\u0001".repeat(35));
    const text = encodeReport({ ...report, env: { ...report.env, languages }, landmarks });
    expect(new TextEncoder().encode(text).length).toBeLessThanOrEqual(maxReportBytes);
    const { landmarks: kept } = JSON.parse(text) as Report;
    expect(kept).toEqual(landmarks.slice(0, kept?.length));
    expect(kept?.length).toBe(9);
  });
});

test("a session's digest is SHA-256 in base64url", async () => {
  // FIPS 180-2, B.1.
  expect(await sessionDigest("abc")).toBe("ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0");
});

describe("the edge's answer", () => {
  test("is what it said", () => {
    expect(readAnswer(200, '{"ok":true}')).toEqual({ ok: true });
    const verdict = { country: "DE", confidence: 0.9, alarm: "none" };
    expect(readAnswer(200, JSON.stringify({ ok: true, verdict }))).toEqual({ ok: true, verdict });
  });

  test.each([
    [429, '{"error":"rate_limited"}', "rate_limited"],
    [200, '{"error":"missing_fields"}', "missing_fields"],
    [200, '{"ok":1}', "network"],
    [200, "null", "network"],
    [502, "<html>", "network"],
    [500, '{"error":"No such code"}', "network"],
  ])("is an error: %d %s", (status, text, code) => {
    expect(codeOf(() => readAnswer(status, text))).toMatch(new RegExp(`^${code} octet: `));
  });
});

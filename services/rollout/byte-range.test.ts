import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { evaluatePreconditions, parseRange } from "./byte-range.ts";

const part = (first: number, last: number) => ({ kind: "part", range: { first, last } });

describe("parseRange", () => {
  it.each([
    ["bytes=0-499", part(0, 499)],
    ["bytes=500-999", part(500, 999)],
    ["bytes=-500", part(9_500, 9_999)],
    ["bytes=9500-", part(9_500, 9_999)],
    ["bytes=0-0", part(0, 0)],
    ["bytes=-1", part(9_999, 9_999)],
    ["bytes=-20000", part(0, 9_999)],
    ["bytes=9999-20000", part(9_999, 9_999)],
    ["BYTES=1-2", part(1, 2)],
    ["bytes= 1-2 ", part(1, 2)],
    ["bytes=0-99999999999999999999999999", part(0, 9_999)],
  ])("serves %s of 10,000 bytes (the examples of RFC 9110 section 14.1.2 among them)", (header, expected) => {
    expect(parseRange(header, 10_000)).toEqual(expected);
  });

  it.each(["bytes=10000-", "bytes=10000-10001", "bytes=-0", "bytes=99999999999999999999-"])(
    "says that %s cannot be satisfied",
    (header) => {
      expect(parseRange(header, 10_000)).toEqual({ kind: "unsatisfiable" });
    },
  );

  it.each([
    undefined,
    "",
    "bytes",
    "bytes=",
    "bytes=-",
    "bytes=a-b",
    "bytes=2-1",
    "bytes=20000-10000",
    "bytes=0-0,-1",
    "bytes=1 - 2",
    "items=0-1",
    "bytes=+1-2",
    "bytes=0x1-2",
    `bytes=${"1".repeat(300)}-`,
  ])("sends the whole for %s", (header) => {
    expect(parseRange(header, 10_000)).toEqual({ kind: "whole" });
  });

  it("answers every text with the whole, no part, or a part within the representation", () => {
    const texts = fc.oneof(
      fc.string(),
      fc.stringMatching(/^bytes=[0-9, -]{0,20}$/),
      fc.tuple(fc.nat(), fc.nat()).map(([a, b]) => `bytes=${a}-${b}`),
    );
    fc.assert(
      fc.property(texts, fc.integer({ min: 1, max: 2 ** 34 }), (header, size) => {
        const asked = parseRange(header, size);
        if (asked.kind !== "part") return;
        const { first, last } = asked.range;
        expect(first).toBeGreaterThanOrEqual(0);
        expect(last).toBeGreaterThanOrEqual(first);
        expect(last).toBeLessThan(size);
      }),
    );
  });

  it("reads back every range that is written as the grammar says", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 2 ** 34 }), fc.nat(), fc.nat(), (size, a, b) => {
        const first = a % size;
        const last = first + (b % (size - first));
        expect(parseRange(`bytes=${first}-${last}`, size)).toEqual(part(first, last));
        expect(parseRange(`bytes=${first}-`, size)).toEqual(part(first, size - 1));
        expect(parseRange(`bytes=-${size - first}`, size)).toEqual(part(first, size - 1));
      }),
    );
  });
});

describe("evaluatePreconditions", () => {
  const etag = '"abc"';

  it("finds nothing modified where the caller has these bytes, by weak comparison", () => {
    expect(evaluatePreconditions({ "if-none-match": etag }, etag)).toBe("not_modified");
    expect(evaluatePreconditions({ "if-none-match": 'W/"abc"' }, etag)).toBe("not_modified");
    expect(evaluatePreconditions({ "if-none-match": '"x", "abc"' }, etag)).toBe("not_modified");
    expect(evaluatePreconditions({ "if-none-match": "*" }, etag)).toBe("not_modified");
    expect(evaluatePreconditions({ "if-none-match": '"x"' }, etag)).toBe("proceed");
  });

  it("sends a part only to who has the same bytes, by strong comparison and never by date", () => {
    expect(evaluatePreconditions({ "if-range": etag }, etag)).toBe("proceed");
    expect(evaluatePreconditions({ "if-range": 'W/"abc"' }, etag)).toBe("proceed_without_range");
    expect(evaluatePreconditions({ "if-range": '"x"' }, etag)).toBe("proceed_without_range");
    expect(evaluatePreconditions({ "if-range": "Wed, 21 Oct 2026 07:28:00 GMT" }, etag)).toBe("proceed_without_range");
  });

  it("fails where If-Match names other bytes, before it looks at anything else", () => {
    expect(evaluatePreconditions({ "if-match": '"x"', "if-none-match": etag }, etag)).toBe("failed");
    expect(evaluatePreconditions({ "if-match": 'W/"abc"' }, etag)).toBe("failed");
    expect(evaluatePreconditions({ "if-match": '"x", "abc"' }, etag)).toBe("proceed");
    expect(evaluatePreconditions({ "if-match": "*" }, etag)).toBe("proceed");
  });
});

import fc from "fast-check";
import { expect, it } from "vitest";
import { parseFlatJson, readReportHead } from "./report-head.ts";

const read = (text: string) => readReportHead(Buffer.from(text));

it("reads what the edge must know, and no more", () => {
  const channel = "A".repeat(22);
  expect(read(`{"ref":"sess_1","channel":"${channel}","x":{}}`)).toEqual({ ref: "sess_1", channel });
  expect(read('{"ref":"a.b~c-d_e","channel":"short"}')).toEqual({ ref: "a.b~c-d_e", channel: undefined });
  for (const none of ["", "null", "1", '"ref"', "[]", "{}", '{"ref":1}', '{"ref":""}', '{"ref":"a/b"}', "{"])
    expect(read(none)).toBeUndefined();
});

it("parses JSON as JSON.parse does, up to its depth", () => {
  const depthOf = (value: unknown): number =>
    typeof value === "object" && value !== null ? 1 + Math.max(0, ...Object.values(value).map(depthOf)) : 0;
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 20 }), (value) => {
      const wrapped = { value };
      const parsed = parseFlatJson(Buffer.from(JSON.stringify(wrapped)));
      if (depthOf(wrapped) > 12) expect(parsed).toBeUndefined();
      else expect(parsed).toEqual(JSON.parse(JSON.stringify(wrapped)));
    }),
  );
});

it("bounds depth before it parses, and counts nothing inside of texts", () => {
  const nested = (depth: number) => Buffer.from(`{"a":${"[".repeat(depth - 1)}${"]".repeat(depth - 1)}}`);
  expect(parseFlatJson(nested(12))).toBeDefined();
  expect(parseFlatJson(nested(13))).toBeUndefined();
  expect(parseFlatJson(nested(30_000))).toBeUndefined();
  expect(parseFlatJson(Buffer.from(`{"a":"\\"${"[{".repeat(100)}"}`))).toEqual({ a: `"${"[{".repeat(100)}` });
});

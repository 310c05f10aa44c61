import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { shortenList } from "./shorten-list.ts";

describe("shortenList", () => {
  test("writes all where they fit", () => {
    expect(shortenList([], 10)).toBe("");
    expect(shortenList(["a", "b"], 3)).toBe("a b");
  });

  test("says how many more there are where they do not", () => {
    expect(shortenList(["models:read", "models:write", "devices:read", "x"], 30)).toBe("models:read models:write +2");
    expect(shortenList(["a-name-that-is-too-long"], 5)).toBe("a-name-that-is-too-long");
  });

  test("fits wherever the first does, and accounts for every name", () => {
    const names = fc.array(fc.stringMatching(/^[a-z:]{1,20}$/), { minLength: 1, maxLength: 30 });
    fc.assert(
      fc.property(names, fc.integer({ min: 26, max: 120 }), (list, width) => {
        const text = shortenList(list, width);
        expect(text.length).toBeLessThanOrEqual(width);
        const rest = / \+(\d+)$/.exec(text);
        const shown = text.replace(/ \+\d+$/, "").split(" ").length;
        expect(shown + Number(rest?.[1] ?? 0)).toBe(list.length);
      }),
    );
  });
});

import { describe, expect, test } from "vitest";
import { checkModelName } from "./check-model-name.ts";

describe("checkModelName", () => {
  test.each(["a", "vad", "0.1_b-c", "a".repeat(100), `mdl_${"a".repeat(26)}`])("takes %s", (text) => {
    expect(checkModelName(text)).toBe(text);
  });

  test.each(["", "VAD", "-a", "a b", "a/b", "ä", "a".repeat(101)])("refuses %j in words", (text) => {
    expect(() => checkModelName(text)).toThrow(
      expect.objectContaining({ code: 2, hint: expect.stringContaining("lower-case letters, digits, - _ .") }),
    );
  });
});

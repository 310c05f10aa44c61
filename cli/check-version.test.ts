import { describe, expect, test } from "vitest";
import { checkVersion, checkVersionReference } from "./check-version.ts";

describe("checkVersion", () => {
  test.each(["0.0.0", "1.2.0", "10.20.30", "1.2.0-beta.1", "1.2.0+build.7", "1.2.0-rc.1+b7"])("takes %s", (text) => {
    expect(checkVersion(text)).toBe(text);
  });

  test.each(["", "1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "latest", `1.0.0-${"a".repeat(21)}`, "1.0.0\n"])(
    "refuses %j in words",
    (text) => {
      expect(() => checkVersion(text)).toThrow(
        expect.objectContaining({ code: 2, hint: expect.stringContaining("a version such as 1.2.0") }),
      );
    },
  );
});

describe("checkVersionReference", () => {
  test("takes an id and the newest too", () => {
    const id = `mvr_${"a".repeat(26)}`;
    expect([id, "latest", "1.2.0"].map(checkVersionReference)).toEqual([id, "latest", "1.2.0"]);
    expect(() => checkVersionReference("mvr_a")).toThrow(expect.objectContaining({ code: 2 }));
  });
});

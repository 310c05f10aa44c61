import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseSemanticVersion } from "./semantic-version.ts";

describe("parseSemanticVersion", () => {
  it("reads every part", () => {
    expect(parseSemanticVersion("1.20.3-rc.1.x-y+build.007")).toEqual({
      major: 1,
      minor: 20,
      patch: 3,
      prerelease: ["rc", "1", "x-y"],
      build: ["build", "007"],
    });
  });

  it.each([
    "",
    "1",
    "1.2",
    "v1.2.3",
    "01.2.3",
    "1.02.3",
    "1.2.3-",
    "1.2.3-01",
    "1.2.3-a..b",
    "1.2.3+",
    "1.2.3+a..b",
    "1.2.3 ",
    "1.2.3-ü",
    "latest",
    "9007199254740993.0.0",
    `1.2.3-${"a".repeat(64)}`,
  ])("refuses %j", (text) => {
    expect(parseSemanticVersion(text)).toBeUndefined();
  });

  it("reads back every release that it could have written", () => {
    const number = fc.nat();
    fc.assert(
      fc.property(number, number, number, (major, minor, patch) => {
        expect(parseSemanticVersion(`${major}.${minor}.${patch}`)).toEqual({
          major,
          minor,
          patch,
          prerelease: [],
          build: [],
        });
      }),
    );
  });
});

import { describe, expect, it } from "vitest";
import { sampleId } from "./test/sample-ids.ts";
import { createUnknownSubjects } from "./unknown-subjects.ts";

const now = Date.UTC(2026, 2, 1);

function subject(letter: string) {
  return { deviceId: sampleId("dev", "a"), modelId: sampleId("mdl", letter), versionId: "", rolloutId: "" };
}

describe("subjects that no rollout names", () => {
  it("are admitted up to a number for each organisation, and stay admitted", () => {
    const unknown = createUnknownSubjects(2);
    const admits = (orgId: string, letter: string) => unknown.admit(orgId, subject(letter), now);
    expect([..."abcab"].map((letter) => admits("org_a", letter))).toEqual([true, true, false, true, true]);
    expect(admits("org_b", "c")).toBe(true);
  });

  it("are counted anew after a day", () => {
    const unknown = createUnknownSubjects(1);
    expect(unknown.admit("org_a", subject("a"), now)).toBe(true);
    expect(unknown.admit("org_a", subject("b"), now + 86_399_999)).toBe(false);
    expect(unknown.admit("org_a", subject("b"), now + 86_400_000)).toBe(true);
  });
});

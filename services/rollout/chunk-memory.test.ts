import { nameOfReason, reasonOf } from "@octomesh/mesh/errors";
import { describe, expect, it } from "vitest";
import { createChunkMemory } from "./chunk-memory.ts";

function refusalOf(work: () => unknown): string | undefined {
  try {
    work();
    return undefined;
  } catch (error) {
    const reason = reasonOf(error);
    return reason === undefined ? undefined : nameOfReason(reason);
  }
}

describe("the memory for chunks", () => {
  it("is not one organisation's alone, however many chunks it has on their way", () => {
    const memory = createChunkMemory({ totalBytes: 64, organizationBytes: 16 });
    memory.reserve("org_a", 8);
    memory.reserve("org_a", 8);
    expect(refusalOf(() => memory.reserve("org_a", 1))).toBe("OVERLOADED");
    expect(refusalOf(() => memory.reserve("org_b", 8))).toBeUndefined();
  });

  it("ends at the total, and is whole again once everything was given back", () => {
    const memory = createChunkMemory({ totalBytes: 24, organizationBytes: 16 });
    const releases = [memory.reserve("org_a", 16), memory.reserve("org_b", 8)];
    expect(refusalOf(() => memory.reserve("org_c", 1))).toBe("OVERLOADED");
    for (const release of releases) release();
    expect(refusalOf(() => memory.reserve("org_a", 16))).toBeUndefined();
    expect(refusalOf(() => memory.reserve("org_c", 8))).toBeUndefined();
  });
});

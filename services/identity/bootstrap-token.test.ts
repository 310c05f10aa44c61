import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { admitsIdentifier, type BootstrapTokenFacts, bootstrapTokenState } from "./bootstrap-token.ts";

function facts(change: Partial<BootstrapTokenFacts> = {}): BootstrapTokenFacts {
  return { max_uses: 2, uses: 0, expire_time: new Date(100), revoke_time: null, allowed_identifiers: [], ...change };
}

describe("bootstrapTokenState", () => {
  it.each([
    ["active", facts(), 99],
    ["expired", facts(), 100],
    ["active", facts({ uses: 1 }), 99],
    ["used", facts({ uses: 2 }), 99],
    ["used", facts({ uses: 2 }), 100],
    ["revoked", facts({ revoke_time: new Date(1) }), 50],
    ["revoked", facts({ uses: 2, revoke_time: new Date(1) }), 200],
  ] as const)("is %s", (state, token, now) => {
    expect(bootstrapTokenState(token, now)).toBe(state);
  });

  it("never becomes active again as time goes by and uses are taken", () => {
    fc.assert(
      fc.property(fc.array(fc.record({ wait: fc.nat(60), use: fc.boolean() }), { maxLength: 20 }), (steps) => {
        let token = facts();
        let now = 0;
        let ended = false;
        for (const { wait, use } of steps) {
          now += wait;
          if (use && token.uses < token.max_uses) token = { ...token, uses: token.uses + 1 };
          const isActive = bootstrapTokenState(token, now) === "active";
          if (ended) expect(isActive).toBe(false);
          ended ||= !isActive;
        }
      }),
    );
  });
});

describe("admitsIdentifier", () => {
  it("admits any where none is listed, and else exactly those", () => {
    expect(admitsIdentifier(facts(), "x")).toBe(true);
    const listed = facts({ allowed_identifiers: ["a", "b"] });
    expect(["a", "b", "A", "a ", ""].map((identifier) => admitsIdentifier(listed, identifier))).toEqual([
      true,
      true,
      false,
      false,
      false,
    ]);
  });
});

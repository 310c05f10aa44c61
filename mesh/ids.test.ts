import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isId, newId, timeOfId } from "./ids.ts";

describe("newId", () => {
  it("writes prefix, underscore and 26 base32 characters", () => {
    expect(newId("dev")).toMatch(/^dev_[a-z2-7]{26}$/);
    expect(isId("dev", newId("dev"))).toBe(true);
  });

  it("keeps the time it was given, for every time a UUIDv7 can hold", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 2 ** 47 - 1 }), (offset) => {
        const time = timeOfId(newId("rol", 2 ** 47 + offset));
        // A clock that steps back a little follows the last id; otherwise the time is exact.
        expect(time).toBeGreaterThanOrEqual(2 ** 47 + offset);
        expect(time - (2 ** 47 + offset)).toBeLessThanOrEqual(10_000);
      }),
    );
  });

  it("never repeats", () => {
    const ids = new Set(Array.from({ length: 20_000 }, () => newId("evt")));
    expect(ids.size).toBe(20_000);
  });

  it("refuses a prefix that is none", () => {
    for (const prefix of ["", "D", "dev_", "a", "averylongone", "d1"])
      expect(() => newId(prefix)).toThrow("an id prefix is");
  });
});

describe("isId", () => {
  it("accepts only its own prefix and exact shape", () => {
    const id = newId("org");
    const wrong = ["", "org_", id.slice(0, -1), `${id}a`, id.toUpperCase(), ` ${id}`, `${id}\n`, newId("dev")];
    for (const value of [...wrong, undefined, 7, {}]) expect(isId("org", value)).toBe(false);
  });

  it("accepts one text per UUID: the unused bits of the last character are zero", () => {
    const id = newId("org");
    expect(isId("org", `${id.slice(0, -1)}b`)).toBe(false);
  });

  it("refuses arbitrary strings", () => {
    fc.assert(fc.property(fc.string(), (value) => !isId("org", value)));
  });
});

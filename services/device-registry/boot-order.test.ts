import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type BootOrder, followBoot, maxEarlierBoots, noBoots } from "./boot-order.ts";

function followAll(messages: readonly [string, number][]): { order: BootOrder; said: string[] } {
  let order = noBoots;
  const said = messages.map(([bootId, sequence]) => {
    const next = followBoot(order, { bootId, sequence: BigInt(sequence) });
    order = next.order;
    return next.message;
  });
  return { order, said };
}

describe("the order of a device's boots", () => {
  it("follows the counting of one boot, and passes over what was overtaken or sent twice", () => {
    expect(
      followAll([
        ["a", 0],
        ["a", 1],
        ["a", 1],
        ["a", 0],
        ["a", 5],
      ]).said,
    ).toEqual(["newer", "newer", "repeated", "repeated", "newer"]);
  });

  it("takes one boot after the other as one installation", () => {
    expect(
      followAll([
        ["a", 3],
        ["b", 0],
        ["c", 0],
      ]).said,
    ).toEqual(["newer", "newer", "newer"]);
  });

  it("notices two installations by each change between their boots", () => {
    const { said } = followAll([
      ["a", 0],
      ["b", 0],
      ["a", 1],
      ["b", 1],
      ["a", 2],
    ]);
    expect(said).toEqual(["newer", "newer", "returned", "returned", "returned"]);
  });

  it("does not take a late message of the boot before for a second installation", () => {
    expect(
      followAll([
        ["a", 0],
        ["a", 1],
        ["b", 0],
        ["a", 1],
      ]).said.at(-1),
    ).toBe("repeated");
  });

  it("takes a boot without an id like any other", () => {
    expect(
      followAll([
        ["", 0],
        ["", 1],
        ["a", 0],
      ]).said,
    ).toEqual(["newer", "newer", "newer"]);
  });

  it("holds each boot once, a bounded number of them, and never counts backwards", () => {
    const messages = fc.array(fc.tuple(fc.constantFrom(..."abcdefghijklmn"), fc.nat(9)), { maxLength: 60 });
    fc.assert(
      fc.property(messages, (sent) => {
        let order = noBoots;
        for (const [bootId, sequence] of sent) {
          const before = order;
          const next = followBoot(order, { bootId, sequence: BigInt(sequence) });
          order = next.order;
          const boots = [order.bootId, ...order.earlier.map((boot) => boot.bootId)];
          expect(new Set(boots).size).toBe(boots.length);
          expect(order.earlier.length).toBeLessThanOrEqual(maxEarlierBoots);
          if (next.message === "repeated") expect(order).toBe(before);
          else expect(order).toMatchObject({ bootId, sequence: BigInt(sequence) });
          if (order.bootId === before.bootId) expect(order.sequence).toBeGreaterThanOrEqual(before.sequence);
        }
      }),
    );
  });
});

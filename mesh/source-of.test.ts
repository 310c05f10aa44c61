import fc from "fast-check";
import { expect, test } from "vitest";
import { sourceOf } from "./source-of.ts";

test("an IPv4 address is its own source, also where it is mapped into IPv6", () => {
  fc.assert(
    fc.property(fc.ipV4(), (address) => {
      expect(sourceOf(address)).toBe(address);
      expect(sourceOf(`::ffff:${address}`)).toBe(address);
    }),
  );
});

test("all addresses of an IPv6 subscriber are one source, and those of another are another", () => {
  expect(sourceOf("2001:db8:1:2::1")).toBe(sourceOf("2001:db8:1:2:ffff:ffff:ffff:ffff"));
  expect(sourceOf("2001:db8:1:2::1")).not.toBe(sourceOf("2001:db8:1:3::1"));
});

test("never throws", () => {
  fc.assert(fc.property(fc.oneof(fc.ipV6(), fc.string()), (text) => typeof sourceOf(text) === "string"));
  expect(sourceOf("")).toBe("");
});

import { expect, it } from "vitest";
import { createAddressLimits } from "./address-limits.ts";

it("counts by address, and IPv6 by its network, within a minute", async () => {
  let now = 0;
  const limits = createAddressLimits(2, () => now);
  const take = (address: string) => limits.take(address);
  expect([await take("198.51.100.1"), await take("198.51.100.1")]).toEqual([0, 0]);
  const waitMs = await take("198.51.100.1");
  expect(waitMs).toBeGreaterThan(0);
  expect(waitMs).toBeLessThanOrEqual(62_000);
  expect(await take("198.51.100.2")).toBe(0);
  expect([await take("2001:db8::1"), await take("2001:db8::2")]).toEqual([0, 0]);
  expect(await take("2001:db8:0:0:ffff::3")).toBeGreaterThan(0);
  expect(await take("2001:db8:0:1::1")).toBe(0);
  now += waitMs;
  expect(await take("198.51.100.1")).toBe(0);
});

it("does not count this machine itself", async () => {
  const limits = createAddressLimits(1, () => 0);
  for (let i = 0; i < 5; i += 1) expect(await limits.take("127.0.0.1")).toBe(0);
  for (let i = 0; i < 50; i += 1) expect(limits.open("::1")).toBeDefined();
});

it("gives places for channels, and takes each back once", () => {
  const limits = createAddressLimits(1, () => 0);
  const places = Array.from({ length: 16 }, () => limits.open("198.51.100.1"));
  expect(places.every((place) => place !== undefined)).toBe(true);
  expect(limits.open("198.51.100.1")).toBeUndefined();
  expect(limits.open("198.51.100.2")).toBeDefined();
  places[0]?.();
  places[0]?.();
  expect(limits.open("198.51.100.1")).toBeDefined();
  expect(limits.open("198.51.100.1")).toBeUndefined();
});

import { describe, expect, test } from "vitest";
import { hasLoopbackRange, loopbackAddress, loopbackUrl } from "./loopback-address.ts";

describe("loopbackAddress", () => {
  test("is another one for every device, and never one that ends in 0 or 255", () => {
    const addresses = Array.from({ length: 2000 }, (_, index) => loopbackAddress(7, index));
    expect(new Set(addresses).size).toBe(2000);
    expect(addresses[0]).toBe("127.7.1.1");
    expect(addresses[250]).toBe("127.7.2.1");
    for (const address of addresses) expect(address).toMatch(/^127\.7\.\d{1,3}\.([1-9]|[1-9]\d|1\d\d|2[0-4]\d|250)$/);
  });

  test("refuses what has no address", () => {
    expect(() => loopbackAddress(0, 0)).toThrow(RangeError);
    expect(() => loopbackAddress(255, 0)).toThrow(RangeError);
    expect(() => loopbackAddress(1, 62_500)).toThrow(RangeError);
  });
});

test("a mesh on another machine has no loopback range to it", async () => {
  expect(await hasLoopbackRange("https://mesh.example.com")).toBe(false);
});

test.runIf(process.platform === "linux")("Linux takes all of 127.0.0.0/8 for its own", async () => {
  expect(await hasLoopbackRange("http://localhost:8080")).toBe(true);
});

test("a device with an IPv4 source address connects to an IPv4 address", () => {
  expect(loopbackUrl("http://localhost:8080")).toBe("http://127.0.0.1:8080");
  expect(loopbackUrl("http://127.0.0.1:9")).toBe("http://127.0.0.1:9");
});

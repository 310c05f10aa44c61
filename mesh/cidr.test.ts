import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isLoopbackHost, normalizeAddress, parseCidrList } from "./cidr.ts";

describe("a list of networks", () => {
  it("includes the addresses of its blocks and no others", () => {
    const list = parseCidrList("10.0.0.0/8, 192.0.2.7 2001:db8::/32\n::1");
    expect(list?.size).toBe(4);
    for (const address of ["10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8:ffff::1", "::1", "::ffff:10.1.2.3"]) {
      expect([address, list?.includes(address)]).toEqual([address, true]);
    }
    for (const address of ["11.0.0.0", "192.0.2.8", "2001:db9::", "::2", "", "10", "10.1", "nonsense"]) {
      expect([address, list?.includes(address)]).toEqual([address, false]);
    }
  });

  it("may be empty, and then includes nothing", () => {
    expect(parseCidrList("")?.size).toBe(0);
    expect(parseCidrList(" , ")?.includes("127.0.0.1")).toBe(false);
  });

  it.each([
    "10",
    "10/8",
    "127.1",
    "0x7f.0.0.1",
    "10.0.0.0/33",
    "::/129",
    "10.0.0.0/",
    "10.0.0.0/-1",
    "10.0.0.0/8/8",
    "a",
  ])("is refused when it holds %s", (text) => {
    expect(parseCidrList(`127.0.0.1,${text}`)).toBeUndefined();
  });

  it("knows IPv4 networks that are written as IPv6", () => {
    const list = parseCidrList("::ffff:10.0.0.0/104");
    expect(list?.includes("10.9.9.9")).toBe(true);
    expect(list?.includes("11.0.0.1")).toBe(false);
  });

  it("agrees with arithmetic on IPv4", () => {
    const number = fc.integer({ min: 0, max: 2 ** 32 - 1 });
    fc.assert(
      fc.property(number, number, fc.integer({ min: 0, max: 32 }), (network, address, bits) => {
        const expected = Math.floor(network / 2 ** (32 - bits)) === Math.floor(address / 2 ** (32 - bits));
        expect(parseCidrList(`${ipv4(network)}/${bits}`)?.includes(ipv4(address))).toBe(expected);
      }),
    );
  });
});

describe("an address", () => {
  it("is brought to one form", () => {
    expect(normalizeAddress("::ffff:192.0.2.1")).toBe("192.0.2.1");
    expect(normalizeAddress("2001:0DB8::0001")).toBe("2001:db8::1");
    expect(normalizeAddress("fe80::1%eth0")).toBe("fe80::1");
    for (const text of ["", "1", "127.1", "01.2.3.4", "1.2.3.4:80", "[::1]", "unknown", "_hidden"]) {
      expect(normalizeAddress(text)).toBeUndefined();
    }
  });

  it("is loopback or not", () => {
    for (const host of ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"]) {
      expect([host, isLoopbackHost(host)]).toEqual([host, true]);
    }
    for (const host of ["", "0.0.0.0", "::", "10.0.0.1", "127.0.0.1.example.com", "localhost.example.com", "127.1"]) {
      expect([host, isLoopbackHost(host)]).toEqual([host, false]);
    }
  });
});

function ipv4(number: number): string {
  return [24, 16, 8, 0].map((shift) => (number >>> shift) & 255).join(".");
}

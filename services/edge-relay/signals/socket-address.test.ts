import { isIP } from "node:net";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { hostBytesOf, socketAddressFrom } from "./socket-address.ts";

describe("an address as the kernel reads it", () => {
  it("holds the bytes that the text stands for", () => {
    fc.assert(
      fc.property(fc.oneof(fc.ipV4(), fc.ipV6()), (text) => {
        const address = socketAddressFrom(text);
        if (address === undefined) return;
        const host = hostBytesOf(address.version, address.bytes)!;
        expect(host.length).toBe(address.version === 4 ? 4 : 16);
        const again =
          address.version === 4
            ? host.join(".")
            : Array.from({ length: 8 }, (_, i) => host.readUInt16BE(2 * i).toString(16)).join(":");
        expect(isIP(again)).toBe(address.version);
        expect(socketAddressFrom(again)).toEqual(address);
        expect(hostBytesOf(address.version === 4 ? 6 : 4, address.bytes)).toBeUndefined();
      }),
    );
    expect(socketAddressFrom("198.51.100.7")?.bytes.subarray(4, 8)).toEqual(Buffer.from([198, 51, 100, 7]));
    expect(socketAddressFrom("2001:db8::1")?.bytes.toString("hex", 8, 24)).toBe("20010db8000000000000000000000001");
    expect(socketAddressFrom("::1")?.bytes.toString("hex", 8, 24)).toBe("00000000000000000000000000000001");
    expect(socketAddressFrom("::ffff:192.0.2.1")).toEqual(socketAddressFrom("192.0.2.1"));
    expect(socketAddressFrom("1:2:3:4:5:6:7:8")?.bytes.toString("hex", 8, 24)).toBe("00010002000300040005000600070008");
  });

  it("of any text never throws, and of what is no machine's is none", () => {
    fc.assert(fc.property(fc.string(), (text) => void socketAddressFrom(text)));
    for (const text of ["0.1.2.3", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "ff0e::1", "fe80::1%eth0"]) {
      expect(socketAddressFrom(text)).toBeUndefined();
    }
  });

  it("that the kernel cut off is none", () => {
    fc.assert(
      fc.property(fc.constantFrom(4 as const, 6 as const), fc.uint8Array({ maxLength: 40 }), (version, any) => {
        const host = hostBytesOf(version, Buffer.from(any));
        if (host !== undefined) expect(host.length).toBe(version === 4 ? 4 : 16);
      }),
    );
  });
});

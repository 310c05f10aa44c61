import fc from "fast-check";
import {
  Command,
  INETProtocol,
  IPv4Address,
  IPv4ProxyAddress,
  IPv6Address,
  IPv6ProxyAddress,
  Peer,
  TransportProtocol,
  V1ProxyProtocol,
  V2ProxyProtocol,
} from "proxy-protocol-js";
import { describe, expect, it } from "vitest";
import { normalizeAddress } from "./cidr.ts";
import { readProxyHeader } from "./proxy-protocol.ts";

const port = fc.integer({ min: 1, max: 65_535 });
const bytes = (length: number) => fc.array(fc.nat(255), { minLength: length, maxLength: length });
const rest = fc.uint8Array({ maxLength: 50 });

/** Headers as another implementation builds them, and the address that they carry. */
const header = fc.oneof(
  fc.tuple(fc.ipV4(), fc.ipV4(), port, port).map(([from, to, fromPort, toPort]) => ({
    built: Buffer.from(new V1ProxyProtocol(INETProtocol.TCP4, new Peer(from, fromPort), new Peer(to, toPort)).build()),
    address: from,
  })),
  fc.tuple(fc.ipV6(), fc.ipV6(), port, port).map(([from, to, fromPort, toPort]) => ({
    built: Buffer.from(new V1ProxyProtocol(INETProtocol.TCP6, new Peer(from, fromPort), new Peer(to, toPort)).build()),
    address: normalizeAddress(from),
  })),
  fc.tuple(bytes(4), bytes(4), port, port).map(([from, to, fromPort, toPort]) => ({
    built: v2(new IPv4ProxyAddress(IPv4Address.createFrom(from), fromPort, IPv4Address.createFrom(to), toPort)),
    address: from.join("."),
  })),
  fc.tuple(bytes(16), bytes(16), port, port).map(([from, to, fromPort, toPort]) => ({
    built: v2(new IPv6ProxyAddress(IPv6Address.createFrom(from), fromPort, IPv6Address.createFrom(to), toPort)),
    address: normalizeAddress((Buffer.from(from).toString("hex").match(/..../g) ?? []).join(":")),
  })),
);

function v2(address: IPv4ProxyAddress | IPv6ProxyAddress): Buffer {
  return Buffer.from(new V2ProxyProtocol(Command.PROXY, TransportProtocol.STREAM, address).build());
}

function binary(versionAndCommand: number, family: number, body: Buffer, length = body.length): Buffer {
  const head = Buffer.from("0d0a0d0a000d0a515549540a00000000", "hex");
  head.writeUInt8(versionAndCommand, 12);
  head.writeUInt8(family, 13);
  head.writeUInt16BE(length, 14);
  return Buffer.concat([head, body]);
}

describe("a PROXY protocol header", () => {
  it("is read as others build it, with what follows left alone, however it is cut", () => {
    fc.assert(
      fc.property(header, rest, ({ built, address }, after) => {
        const expected = { state: "complete", length: built.length, address };
        expect(readProxyHeader(Buffer.concat([built, after]))).toEqual(expected);
        for (let length = 0; length < built.length; length += 1) {
          expect(readProxyHeader(built.subarray(0, length))).toEqual({ state: "incomplete" });
        }
      }),
    );
  });

  it("is never read for ever, and never throws, whatever comes", () => {
    const start = fc.constantFrom(
      Buffer.from("PROXY "),
      Buffer.from("0d0a0d0a000d0a515549540a", "hex"),
      Buffer.alloc(0),
    );
    fc.assert(
      fc.property(start, fc.uint8Array({ maxLength: 300 }), (first, more) => {
        const result = readProxyHeader(Buffer.concat([first, more]));
        if (result.state === "complete") {
          expect(result.length).toBeLessThanOrEqual(first.length + more.length);
          if (result.address !== undefined) expect(normalizeAddress(result.address)).toBe(result.address);
        }
      }),
      { numRuns: 1000 },
    );
    expect(readProxyHeader(Buffer.concat([Buffer.from("PROXY "), Buffer.alloc(200, 0x20)])).state).toBe("invalid");
  });

  it.each([
    "PROXY TCP4 203.0.113.1 192.0.2.1 1\r\n",
    "PROXY TCP4 203.0.113.1 192.0.2.1 1 2 3\r\n",
    "PROXY TCP4 203.0.113.256 192.0.2.1 1 2\r\n",
    "PROXY TCP4 ::1 ::1 1 2\r\n",
    "PROXY TCP6 203.0.113.1 192.0.2.1 1 2\r\n",
    "PROXY TCP4 203.0.113.1 192.0.2.1 65536 2\r\n",
    "PROXY TCP4 203.0.113.1 192.0.2.1 01 2\r\n",
    "PROXY TCP5 203.0.113.1 192.0.2.1 1 2\r\n",
    "PROXY  TCP4 203.0.113.1 192.0.2.1 1 2\r\n",
    "PROXY \r\n",
    "proxy TCP4 203.0.113.1 192.0.2.1 1 2\r\n",
    "GET / HTTP/1.1\r\n",
  ])("is not %j", (text) => {
    expect(readProxyHeader(Buffer.from(text)).state).toBe("invalid");
  });

  it("may say nothing of a client", () => {
    const unknown = "PROXY UNKNOWN ff:: whatever\r\n";
    expect(readProxyHeader(Buffer.from(`${unknown}GET /`))).toEqual({
      state: "complete",
      length: unknown.length,
      address: undefined,
    });
    const local = binary(0x20, 0x00, Buffer.alloc(0));
    expect(readProxyHeader(local)).toEqual({ state: "complete", length: 16, address: undefined });
    const unix = binary(0x21, 0x31, Buffer.alloc(216));
    expect(readProxyHeader(unix)).toEqual({ state: "complete", length: 232, address: undefined });
  });

  it("may carry TLVs behind its addresses, within the bound", () => {
    const addresses = Buffer.from([203, 0, 113, 1, 192, 0, 2, 1, 0, 1, 0, 2]);
    const withTlvs = binary(0x21, 0x11, Buffer.concat([addresses, Buffer.alloc(100)]));
    expect(readProxyHeader(withTlvs)).toEqual({ state: "complete", length: 128, address: "203.0.113.1" });
    expect(readProxyHeader(binary(0x21, 0x11, addresses, 3000)).state).toBe("invalid");
  });

  it("is refused with another version, command or family, or too short for its addresses", () => {
    const body = Buffer.alloc(36);
    expect(readProxyHeader(binary(0x11, 0x11, body)).state).toBe("invalid");
    expect(readProxyHeader(binary(0x22, 0x11, body)).state).toBe("invalid");
    expect(readProxyHeader(binary(0x21, 0x13, body)).state).toBe("invalid");
    expect(readProxyHeader(binary(0x21, 0x11, Buffer.alloc(11))).state).toBe("invalid");
    expect(readProxyHeader(binary(0x21, 0x21, Buffer.alloc(12))).state).toBe("invalid");
  });
});

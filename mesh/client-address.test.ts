import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseCidrList } from "./cidr.ts";
import { clientAddressOf } from "./client-address.ts";

const trusted = parseCidrList("10.0.0.0/8, fd00::/8")!;
const proxy = fc.tuple(fc.nat(255), fc.nat(255), fc.nat(255)).map((parts) => `10.${parts.join(".")}`);
const stranger = fc.oneof(
  fc.ipV4().filter((address) => !address.startsWith("10.")),
  fc.constantFrom("2001:db8::1", "2001:db8:1:2:3:4:5:6"),
);
const anything = fc.oneof(fc.string(), fc.ipV4(), fc.ipV6(), fc.constantFrom("unknown", "", "10.0.0.1", ",", "::1"));

describe("the client's address", () => {
  it("is the connection's own where it is no trusted proxy's, whatever the header says", () => {
    fc.assert(
      fc.property(stranger, anything, (socket, header) => {
        expect(clientAddressOf(socket, header, trusted)).toBe(socket);
      }),
    );
  });

  it("is the one that the outermost trusted proxy saw, whatever the client wrote before it", () => {
    fc.assert(
      fc.property(
        fc.array(anything, { maxLength: 5 }),
        stranger,
        fc.array(proxy, { maxLength: 4 }),
        proxy,
        (forged, client, proxies, socket) => {
          const header = [...forged, client, ...proxies].join(", ");
          expect(clientAddressOf(socket, header, trusted)).toBe(client);
        },
      ),
    );
  });

  it("is the last proxy that can be believed where the header breaks off in nonsense", () => {
    expect(clientAddressOf("10.0.0.1", "203.0.113.1, nonsense, 10.0.0.2", trusted)).toBe("10.0.0.2");
    expect(clientAddressOf("10.0.0.1", "203.0.113.1, ", trusted)).toBe("10.0.0.1");
    expect(clientAddressOf("10.0.0.1", "", trusted)).toBe("10.0.0.1");
    expect(clientAddressOf("10.0.0.1", undefined, trusted)).toBe("10.0.0.1");
    expect(clientAddressOf("10.0.0.1", "10.0.0.3, 10.0.0.2", trusted)).toBe("10.0.0.3");
  });

  it("is read with its port, in brackets, and mapped into IPv6", () => {
    expect(clientAddressOf("::ffff:10.0.0.1", "203.0.113.1:4711", trusted)).toBe("203.0.113.1");
    expect(clientAddressOf("fd00::1", "[2001:db8::1]:4711", trusted)).toBe("2001:db8::1");
    expect(clientAddressOf("fd00::1", "[2001:db8::1]", trusted)).toBe("2001:db8::1");
    expect(clientAddressOf("10.0.0.1", "::ffff:203.0.113.1", trusted)).toBe("203.0.113.1");
    expect(clientAddressOf("10.0.0.1", "2001:DB8:0::1", trusted)).toBe("2001:db8::1");
  });

  it("is empty where the connection has gone", () => {
    expect(clientAddressOf(undefined, "203.0.113.1", trusted)).toBe("");
  });

  it("is found with bounded work in a header of any length", () => {
    const header = Array.from({ length: 5000 }, () => "10.0.0.9").join(",");
    expect(clientAddressOf("10.0.0.1", `203.0.113.1,${header}`, trusted)).toBe("10.0.0.9");
  });
});

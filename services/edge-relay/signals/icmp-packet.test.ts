import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { internetChecksum, parseEchoReply, writeEchoRequest } from "./icmp-packet.ts";

const u16 = fc.integer({ min: 0, max: 0xffff });
const bytes = (maxLength: number) => fc.uint8Array({ maxLength }).map((value) => Buffer.from(value));
const version = fc.constantFrom(4 as const, 6 as const);

/** What a machine answers to an echo request, as a raw socket receives it. */
function answered(version: 4 | 6, request: Buffer, ipOptionWords = 0): Buffer {
  const reply = Buffer.from(request);
  reply.writeUInt8(version === 4 ? 0 : 129, 0);
  if (version === 6) return reply;
  reply.writeUInt16BE(0, 2);
  reply.writeUInt16BE(internetChecksum(reply), 2);
  const ip = Buffer.alloc(20 + 4 * ipOptionWords);
  ip.writeUInt8(0x40 | (ip.length / 4), 0);
  ip.writeUInt8(1, 9);
  return Buffer.concat([ip, reply]);
}

describe("an ICMP echo", () => {
  it("comes back as it was sent", () => {
    fc.assert(
      fc.property(version, u16, u16, bytes(64), fc.nat({ max: 10 }), (version, id, sequence, payload, words) => {
        const request = writeEchoRequest(version, id, sequence, payload);
        expect(parseEchoReply(version, answered(version, request, words))).toEqual({ id, sequence, payload });
        expect(parseEchoReply(version, request)).toBeUndefined();
      }),
    );
  });

  it("over IPv4 has the checksum of RFC 1071, and counts with no other", () => {
    // The example of section 3 of the RFC.
    expect(internetChecksum(Buffer.from("0001f203f4f5f6f7", "hex"))).toBe(~0xddf2 & 0xffff);
    fc.assert(
      fc.property(
        u16,
        u16,
        bytes(64),
        fc.nat(),
        fc.integer({ min: 1, max: 255 }),
        (id, sequence, payload, at, flip) => {
          const request = writeEchoRequest(4, id, sequence, payload);
          expect(internetChecksum(request)).toBe(0);
          const reply = answered(4, request);
          const index = 20 + (at % (reply.length - 20));
          reply[index]! ^= flip;
          expect(parseEchoReply(4, reply)).toBeUndefined();
        },
      ),
    );
  });

  it("of any bytes never throws", () => {
    fc.assert(
      fc.property(version, bytes(200), (version, any) => void parseEchoReply(version, any)),
      { numRuns: 1_000 },
    );
  });

  it("is no longer than a packet can be", () => {
    expect(() => writeEchoRequest(4, 1, 1, Buffer.alloc(65_508))).toThrow(RangeError);
    expect(writeEchoRequest(4, 1, 1, Buffer.alloc(65_507)).length).toBe(65_515);
  });
});

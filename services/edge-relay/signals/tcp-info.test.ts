import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseTcpInfo } from "./tcp-info.ts";

const fields = {
  sendMss: 16,
  receiveMss: 20,
  pathMtu: 60,
  rttUs: 68,
  rttVarUs: 72,
  advertisedMss: 84,
  receiveRttUs: 92,
  minRttUs: 148,
} as const;
const u32 = fc.integer({ min: 0, max: 0xffff_fffe });

describe("TCP_INFO", () => {
  it("is read field by field, in either order of bytes, as far as the kernel wrote it", () => {
    const values = fc.tuple(...Object.values(fields).map(() => u32));
    fc.assert(
      fc.property(values, fc.nat({ max: 280 }), fc.boolean(), (numbers, length, littleEndian) => {
        const bytes = Buffer.alloc(280);
        const expected: Record<string, number> = {};
        for (const [i, [name, offset]] of Object.entries(fields).entries()) {
          if (littleEndian) bytes.writeUInt32LE(numbers[i]!, offset);
          else bytes.writeUInt32BE(numbers[i]!, offset);
          expected[name] = offset + 4 <= length ? numbers[i]! : 0;
        }
        expect(parseTcpInfo(bytes.subarray(0, length), littleEndian)).toMatchObject(expected);
      }),
    );
  });

  it("has no least round trip before one was measured", () => {
    const bytes = Buffer.alloc(280);
    bytes.writeUInt32LE(0xffff_ffff, 148);
    expect(parseTcpInfo(bytes, true).minRttUs).toBe(0);
  });
});

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseSyn } from "./parse-syn.ts";

interface Option {
  readonly name: string;
  readonly bytes: number[];
  readonly mss?: number;
  readonly windowScale?: number;
}

const u8 = fc.integer({ min: 0, max: 255 });
const u16 = fc.integer({ min: 0, max: 65_535 });
const option: fc.Arbitrary<Option> = fc.oneof(
  fc.constant<Option>({ name: "nop", bytes: [1] }),
  fc.constant<Option>({ name: "sok", bytes: [4, 2] }),
  u16.map((mss) => ({ name: "mss", bytes: [2, 4, mss >> 8, mss & 255], mss })),
  u8.map((windowScale) => ({ name: "ws", bytes: [3, 3, windowScale], windowScale })),
  fc.array(u8, { minLength: 8, maxLength: 8 }).map((stamps) => ({ name: "ts", bytes: [8, 10, ...stamps] })),
  fc.array(u8, { maxLength: 6 }).map((data) => ({ name: "k253", bytes: [253, 2 + data.length, ...data] })),
);
/** As many options as have room in a TCP header. */
const options = fc.array(option, { maxLength: 16 }).map((list) => {
  const taken: Option[] = [];
  let room = 40;
  for (const each of list) {
    if (each.bytes.length > room) break;
    taken.push(each);
    room -= each.bytes.length;
  }
  return taken;
});
const extension = fc.tuple(fc.constantFrom(0, 43, 60), fc.integer({ min: 0, max: 3 }));

const syn = fc.record({
  ipVersion: fc.constantFrom(4 as const, 6 as const),
  ttl: u8,
  window: u16,
  dontFragment: fc.boolean(),
  ipOptionWords: fc.integer({ min: 0, max: 10 }),
  extensions: fc.array(extension, { maxLength: 3 }),
  options,
});

function written(value: typeof syn extends fc.Arbitrary<infer T> ? T : never): Buffer {
  const optionBytes = value.options.flatMap(({ bytes }) => bytes);
  const padded = Buffer.alloc(4 * Math.ceil(optionBytes.length / 4));
  padded.set(optionBytes);
  const tcp = Buffer.alloc(20);
  tcp.writeUInt8(((20 + padded.length) / 4) << 4, 12);
  tcp.writeUInt8(0x02, 13);
  tcp.writeUInt16BE(value.window, 14);
  if (value.ipVersion === 4) {
    const ip = Buffer.alloc(20 + 4 * value.ipOptionWords);
    ip.writeUInt8(0x40 | (ip.length / 4), 0);
    ip.writeUInt8(value.dontFragment ? 0x40 : 0, 6);
    ip.writeUInt8(value.ttl, 8);
    ip.writeUInt8(6, 9);
    return Buffer.concat([ip, tcp, padded]);
  }
  const ip = Buffer.alloc(40);
  ip.writeUInt8(0x60, 0);
  ip.writeUInt8(value.extensions[0]?.[0] ?? 6, 6);
  ip.writeUInt8(value.ttl, 7);
  const headers = value.extensions.map(([, words], i) => {
    const header = Buffer.alloc(8 * (words + 1));
    header.writeUInt8(value.extensions[i + 1]?.[0] ?? 6, 0);
    header.writeUInt8(words, 1);
    return header;
  });
  return Buffer.concat([ip, ...headers, tcp, padded]);
}

describe("a SYN", () => {
  it("is read as it was written, with options and extension headers", () => {
    fc.assert(
      fc.property(syn, (value) => {
        const padding = value.options.reduce((sum, { bytes }) => sum + bytes.length, 0) % 4;
        const names = [...value.options.map(({ name }) => name), ...(padding === 0 ? [] : ["eol"])];
        expect(parseSyn(written(value))).toEqual({
          ipVersion: value.ipVersion,
          ttl: value.ttl,
          window: value.window,
          mss: value.options.findLast(({ mss }) => mss !== undefined)?.mss ?? 0,
          windowScale: value.options.findLast(({ windowScale }) => windowScale !== undefined)?.windowScale ?? -1,
          options: names.join(",").length <= 128 ? names.join(",") : expect.any(String),
          dontFragment: value.ipVersion === 6 || value.dontFragment,
        });
      }),
    );
  });

  it("of Linux is read to the letter", () => {
    const packet = Buffer.from(
      "4500003c1c4640004006b1e6ac100a63ac100a0cc3500050000000010000000" +
        "0a002faf0e6930000020405b40402080a000f42400000000001030307",
      "hex",
    );
    expect(parseSyn(packet)).toEqual({
      ipVersion: 4,
      ttl: 64,
      window: 64_240,
      mss: 1_460,
      windowScale: 7,
      options: "mss,sok,ts,nop,ws",
      dontFragment: true,
    });
  });

  it("that is cut off is none", () => {
    fc.assert(
      fc.property(syn, (value) => {
        const whole = written(value);
        for (let length = 0; length < whole.length; length += 1) {
          expect(parseSyn(whole.subarray(0, length))).toBeUndefined();
        }
      }),
    );
  });

  it("that is mangled, or no SYN at all, never throws and stays within the contract's bounds", () => {
    const mangled = fc.tuple(syn, fc.array(fc.tuple(fc.nat(), u8), { maxLength: 6 })).map(([value, changes]) => {
      const packet = written(value);
      for (const [at, byte] of changes) packet[at % packet.length] = byte;
      return packet;
    });
    const any = fc.uint8Array({ maxLength: 200 }).map((value) => Buffer.from(value));
    fc.assert(
      fc.property(fc.oneof(mangled, any), (packet) => {
        const parsed = parseSyn(packet);
        if (parsed === undefined) return;
        expect(parsed.options.length).toBeLessThanOrEqual(128);
        expect(parsed.options).toMatch(/^([a-z0-9]+(,[a-z0-9]+)*)?$/);
        expect(parsed.windowScale).toBeGreaterThanOrEqual(-1);
        expect(parsed.windowScale).toBeLessThanOrEqual(255);
      }),
      { numRuns: 2_000 },
    );
  });
});

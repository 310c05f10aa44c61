import { createHash, randomBytes } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  deriveToken,
  digestToken,
  equalDigests,
  mintToken,
  parseToken,
  type TokenPrefix,
  tokenPattern,
  tokenPrefixes,
} from "./opaque-token.ts";

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const prefix = fc.constantFrom(...tokenPrefixes);
const body = fc.string({ unit: fc.constantFrom(...base62), minLength: 28, maxLength: 28 });

describe("an opaque token", () => {
  it("has its prefix, 22 random characters and 6 of checksum, and is read back", () => {
    fc.assert(
      fc.property(prefix, (kind) => {
        const token = mintToken(kind);
        expect(token).toMatch(new RegExp(`^${kind}[0-9A-Za-z]{28}$`));
        expect(parseToken(token)).toEqual({ prefix: kind, body: token.slice(kind.length, -6) });
        expect(tokenPattern.exec(`authorization: Bearer ${token}\n`)?.[0]).toBe(token);
      }),
    );
  });

  it("is the one that is published for its random bytes", () => {
    const zeros = mintToken("edg_live_", (size) => Buffer.alloc(size));
    expect(zeros).toBe("edg_live_00000000000000000000002DcoYw");
    // zlib's CRC-32 of the 31 characters before, in base 62.
    expect(crc32(zeros.slice(0, -6))).toBe(value62(zeros.slice(-6)));
  });

  it("carries the CRC-32 of everything before as its last six characters", () => {
    fc.assert(
      fc.property(prefix, (kind) => {
        const token = mintToken(kind);
        expect(value62(token.slice(-6))).toBe(crc32(token.slice(0, -6)));
      }),
    );
  });

  it("passes over random bytes that would favour some characters", () => {
    let asked = 0;
    const token = mintToken("edg_live_", (size) => {
      asked += 1;
      return Buffer.alloc(size, asked === 1 ? 255 : 61);
    });
    expect(asked).toBe(2);
    expect(token.slice(9, 31)).toBe("z".repeat(22));
  });

  it("uses all 62 characters alike", () => {
    const counts = new Map<string, number>();
    const rounds = 5000;
    for (let i = 0; i < rounds; i += 1) {
      for (const character of mintToken("edg_live_").slice(9, 31))
        counts.set(character, (counts.get(character) ?? 0) + 1);
    }
    const expected = (rounds * 22) / 62;
    let chiSquare = 0;
    for (const character of base62) chiSquare += ((counts.get(character) ?? 0) - expected) ** 2 / expected;
    // 61 degrees of freedom: above 130 once in a million runs.
    expect(chiSquare).toBeLessThan(130);
  });

  it("is refused with any one character changed, swapped, added or removed", () => {
    fc.assert(
      fc.property(prefix, fc.nat(), fc.constantFrom(...base62), (kind, at, character) => {
        const token = mintToken(kind);
        const i = kind.length + (at % 28);
        const changed = token.slice(0, i) + character + token.slice(i + 1);
        if (changed !== token) expect(parseToken(changed)).toBeUndefined();
        expect(parseToken(token.slice(0, i) + token.slice(i + 1))).toBeUndefined();
        expect(parseToken(token.slice(0, i) + character + token.slice(i))).toBeUndefined();
        const swapped = token.slice(0, i) + (token[i + 1] ?? "") + token[i] + token.slice(i + 2);
        if (swapped !== token) expect(parseToken(swapped)).toBeUndefined();
      }),
    );
  });

  it("of another prefix is refused: the checksum covers it", () => {
    const token = mintToken("edg_live_");
    expect(parseToken(token.replace("edg_live_", "edg_test_"))).toBeUndefined();
    expect(parseToken(token.replace("edg_live_", "edg_other_"))).toBeUndefined();
  });

  it("is not met by chance: of 100,000 random strings of its shape none passes", () => {
    let passed = 0;
    for (let i = 0; i < 100_000; i += 1) {
      const random = randomBytes(28);
      let text = "edg_live_";
      for (const byte of random) text += base62[byte % 62];
      if (parseToken(text) !== undefined) passed += 1;
    }
    // 62^6 is 13 times 2^32, so even one is a matter of 1 in 43,000 x 13.
    expect(passed).toBe(0);
  });

  it("is refused, without much work, when it is anything else", () => {
    fc.assert(fc.property(fc.oneof(fc.string(), body), (text) => parseToken(text) === undefined));
    const token = mintToken("edg_live_");
    for (const text of [
      ` ${token}`,
      `${token} `,
      `${token}\n`,
      token.toLowerCase(),
      `${token}${"0".repeat(1_000_000)}`,
    ]) {
      expect(parseToken(text)).toBeUndefined();
    }
  });

  it("is stored as its SHA-256", () => {
    const token = mintToken("edg_refresh_");
    expect(digestToken(token)).toEqual(createHash("sha256").update(token).digest());
    expect(equalDigests(digestToken(token), digestToken(token))).toBe(true);
    expect(equalDigests(digestToken(token), digestToken(`${token}x`))).toBe(false);
    expect(equalDigests(digestToken(token), Buffer.alloc(31))).toBe(false);
  });
});

describe("a derived token", () => {
  const key = Buffer.alloc(32, 7);

  it("is always the same for a key and a name, has the same grammar, and differs for any other", () => {
    const info = fc.string();
    fc.assert(
      fc.property(prefix, info, info, (kind, one, other) => {
        const token = deriveToken(kind, key, one);
        expect(deriveToken(kind, key, one)).toBe(token);
        expect(parseToken(token)?.prefix).toBe(kind);
        expect(tokenPattern.exec(token)?.[0]).toBe(token);
        expect(deriveToken(kind, key, other) === token).toBe(one === other);
        expect(deriveToken(kind, Buffer.alloc(32, 8), one)).not.toBe(token);
      }),
    );
  });

  it("of one kind says nothing of that of another", () => {
    const bodies = tokenPrefixes.map((kind: TokenPrefix) => parseToken(deriveToken(kind, key, "same"))?.body);
    expect(new Set(bodies).size).toBe(tokenPrefixes.length);
  });
});

/** CRC-32 (ISO-HDLC) by its definition, bit by bit. */
function crc32(text: string): number {
  let crc = 0xffffffff;
  for (const byte of Buffer.from(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}

function value62(text: string): number {
  let value = 0;
  for (const character of text) value = value * 62 + base62.indexOf(character);
  return value;
}

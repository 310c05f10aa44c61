import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { crc32 } from "node:zlib";

/** Prefixes of opaque tokens, each of which says what the token is. */
export const tokenPrefixes = [
  "edg_live_",
  "edg_test_",
  "edg_bootstrap_",
  "edg_refresh_",
  "edg_session_",
  "edg_setup_",
  "edg_invite_",
  "edg_read_",
  "edg_partner_",
] as const;

/** What a token is, by its beginning. */
export type TokenPrefix = (typeof tokenPrefixes)[number];

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/** 22 base62 characters hold 130.99 bits. */
const bodyLength = 22;
const checksumLength = 6;

/** The form of every opaque token, for secret scanners: prefix, 22 or more base62 characters, 6 of checksum. */
export const tokenPattern =
  /\bedg_(?:live|test|bootstrap|refresh|session|setup|invite|read|partner)_[0-9A-Za-z]{28,64}\b/;

const parsePattern = /^(edg_[a-z]{1,16}_)([0-9A-Za-z]{22,58})([0-9A-Za-z]{6})$/;
const maxTokenLength = 128;

/**
 * Makes a token: the prefix, 22 uniformly random base62 characters (130 bits), and the CRC-32 of all before as 6 base62
 * characters, by which a mistyped token is told from an unknown one without a look-up (DESIGN 8.13).
 */
export function mintToken(prefix: TokenPrefix, random: (size: number) => Buffer = randomBytes): string {
  let body = "";
  while (body.length < bodyLength) {
    for (const byte of random(32)) {
      // Bytes from 248 up would favour the first letters of the alphabet.
      if (byte >= 248 || body.length === bodyLength) continue;
      body += alphabet[byte % 62];
    }
  }
  return withChecksum(prefix, body);
}

/**
 * Derives the token that a key, a prefix and a name always give: HMAC-SHA-256, so that a successor can be returned again without
 * having been stored (DESIGN 8.15). 43 base62 characters, 256 bits.
 */
export function deriveToken(prefix: TokenPrefix, key: Uint8Array, info: string): string {
  const mac = createHmac("sha256", key).update(`${prefix}${info}`, "utf8").digest("hex");
  let number = BigInt(`0x${mac}`);
  let body = "";
  while (body.length < 43) {
    body += alphabet[Number(number % 62n)];
    number /= 62n;
  }
  return withChecksum(prefix, body);
}

/** The parts of a token; undefined for anything that is none, a wrong checksum included. Bounded at 128 characters. */
export function parseToken(value: string): { prefix: TokenPrefix; body: string } | undefined {
  if (value.length > maxTokenLength) return undefined;
  const match = parsePattern.exec(value);
  const [, prefix, body, sum] = match ?? [];
  if (prefix === undefined || body === undefined || sum === undefined || !isTokenPrefix(prefix)) return undefined;
  return checksumOf(prefix + body) === sum ? { prefix, body } : undefined;
}

/** SHA-256 of a token, 32 bytes: what is stored, and what it is looked up by. */
export function digestToken(value: string): Buffer {
  return createHash("sha256").update(value, "utf8").digest();
}

/** Compares digests in time that does not depend on where they differ. */
export function equalDigests(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && timingSafeEqual(a, b);
}

function isTokenPrefix(value: string): value is TokenPrefix {
  return (tokenPrefixes as readonly string[]).includes(value);
}

function withChecksum(prefix: string, body: string): string {
  return prefix + body + checksumOf(prefix + body);
}

function checksumOf(text: string): string {
  let number = crc32(text);
  let sum = "";
  for (let i = 0; i < checksumLength; i += 1) {
    sum = alphabet[number % 62] + sum;
    number = Math.floor(number / 62);
  }
  return sum;
}

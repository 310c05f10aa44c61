import { V7Generator } from "uuidv7";

const alphabet = "abcdefghijklmnopqrstuvwxyz234567";
const prefixPattern = /^[a-z]{2,8}$/;
const bodyPattern = /^[a-z2-7]{25}[aeimquy4]$/;
const generator = new V7Generator();

/** How far, in milliseconds, a clock may step back before ids stop following the last one handed out. */
const rollbackAllowanceMs = 10_000;

/**
 * Makes a new opaque identifier: `prefix_` and the lower-case base32 (RFC 4648 section 6, no padding) of a UUIDv7
 * (RFC 9562 section 5.7), 26 characters. Two ids made by one process never collide and carry increasing UUIDs.
 *
 * The UUID inside is time-ordered; its base32 text is not (the alphabet puts letters before digits, bytes put digits
 * first), so sort by a time column, or by `timeOfId`, and never by the id.
 *
 * @param prefix two to eight lower-case letters, such as `dev`
 * @param now milliseconds since the Unix epoch; the machine's clock by default
 */
export function newId(prefix: string, now: number = Date.now()): string {
  if (!prefixPattern.test(prefix)) throw new TypeError(`an id prefix is 2 to 8 lower-case letters, not "${prefix}"`);
  return `${prefix}_${encodeBase32(generator.generateOrResetCore(now, rollbackAllowanceMs).bytes)}`;
}

/** Says whether `value` is an identifier of this prefix, exactly as `newId` writes it. Bounded work for any input. */
export function isId(prefix: string, value: unknown): value is string {
  return (
    typeof value === "string" &&
    value.length === prefix.length + 27 &&
    value.startsWith(`${prefix}_`) &&
    bodyPattern.test(value.slice(prefix.length + 1))
  );
}

/** The time at which an id was made, in milliseconds since the Unix epoch. Throws a TypeError when it is no id. */
export function timeOfId(id: string): number {
  const body = id.slice(id.indexOf("_") + 1);
  if (!bodyPattern.test(body)) throw new TypeError("not an id");
  // 48 bits of time are the first nine characters and three bits of the tenth.
  let time = 0;
  for (const character of body.slice(0, 9)) time = time * 32 + alphabet.indexOf(character);
  return time * 8 + (alphabet.indexOf(body.charAt(9)) >> 2);
}

function encodeBase32(bytes: Readonly<Uint8Array>): string {
  let text = "";
  let buffer = 0;
  let bits = 0;
  for (const byte of bytes) {
    buffer = (buffer << 8) | byte;
    bits += 8;
    while (bits >= 5) {
      bits -= 5;
      text += alphabet.charAt((buffer >> bits) & 31);
    }
    buffer &= (1 << bits) - 1;
  }
  return bits > 0 ? text + alphabet.charAt((buffer << (5 - bits)) & 31) : text;
}

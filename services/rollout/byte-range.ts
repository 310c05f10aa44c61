/** A part of a representation: positions of its first and its last byte, both counted. */
export interface ByteRange {
  readonly first: number;
  readonly last: number;
}

/** What a Range header asks for: everything, one part, or a part that does not exist. */
export type RangeRequest =
  | { readonly kind: "whole" }
  | { readonly kind: "part"; readonly range: ByteRange }
  | { readonly kind: "unsatisfiable" };

const whole: RangeRequest = { kind: "whole" };
const maxHeaderCharacters = 256;

/**
 * Reads a Range header (RFC 9110 section 14.2) against a representation of `sizeBytes`, at least 1. One range is
 * served; several at once, another unit and whatever is malformed are ignored, as section 14.2 permits, so that the
 * whole is sent.
 */
export function parseRange(header: string | undefined, sizeBytes: number): RangeRequest {
  if (header === undefined || header.length > maxHeaderCharacters) return whole;
  // RFC 9110 section 14.1: range units are case-insensitive; 14.1.1: one range is first "-" [ last ] or "-" suffix.
  const match = /^bytes=[ \t]*(?:(\d+)-(\d*)|-(\d+))[ \t]*$/i.exec(header);
  if (match === null) return whole;
  const [, firstText, lastText, suffixText] = match;
  if (suffixText !== undefined) {
    const suffix = Number(suffixText);
    if (suffix === 0) return { kind: "unsatisfiable" };
    return { kind: "part", range: { first: Math.max(0, sizeBytes - suffix), last: sizeBytes - 1 } };
  }
  if (firstText === undefined || lastText === undefined) return whole;
  if (lastText !== "" && comesBefore(lastText, firstText)) return whole;
  const first = Number(firstText);
  if (first >= sizeBytes) return { kind: "unsatisfiable" };
  const last = lastText === "" ? sizeBytes - 1 : Math.min(Number(lastText), sizeBytes - 1);
  return { kind: "part", range: { first, last } };
}

/** Compares decimal numbers of any length without losing digits. */
function comesBefore(a: string, b: string): boolean {
  return BigInt(a) < BigInt(b);
}

/** What the preconditions of a request come to (RFC 9110 section 13.2.2). */
export type Precondition = "proceed" | "proceed_without_range" | "not_modified" | "failed";

/** The header fields that make a request conditional. */
export interface ConditionalHeaders {
  readonly "if-match"?: string | undefined;
  readonly "if-none-match"?: string | undefined;
  readonly "if-range"?: string | undefined;
}

/**
 * Evaluates the conditional headers of a GET or HEAD for a representation that exists, in the order of RFC 9110 section
 * 13.2.2. `etag` is strong, with its quotes. There is no Last-Modified, so a date in If-Range never matches and the
 * other date conditions are ignored.
 */
export function evaluatePreconditions(headers: ConditionalHeaders, etag: string): Precondition {
  const ifMatch = headers["if-match"];
  if (ifMatch !== undefined && ifMatch.trim() !== "*" && !entityTags(ifMatch).includes(etag)) return "failed";
  const ifNoneMatch = headers["if-none-match"];
  if (ifNoneMatch !== undefined) {
    // Section 13.1.2: weak comparison.
    if (ifNoneMatch.trim() === "*" || entityTags(ifNoneMatch).some((tag) => tag.replace(/^W\//, "") === etag)) {
      return "not_modified";
    }
  }
  const ifRange = headers["if-range"];
  // Section 13.1.5: strong comparison.
  if (ifRange !== undefined && ifRange.trim() !== etag) return "proceed_without_range";
  return "proceed";
}

function entityTags(header: string): string[] {
  return header.slice(0, 8192).match(/(?:W\/)?"[\x21\x23-\x7e\x80-\xff]*"/g) ?? [];
}

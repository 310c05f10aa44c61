/** What the edge itself must know of a report; the rest passes through as it came. */
export interface ReportHead {
  /** The session's reference: 1 to 128 of `A-Za-z0-9._~-`. */
  readonly ref: string;
  /** The channel that the report names, 22 characters; undefined without one. */
  readonly channel: string | undefined;
}

/** Objects and lists in one another at most; a report has four. */
const maxDepth = 12;
const refPattern = /^[A-Za-z0-9._~-]{1,128}$/;
const channelPattern = /^[A-Za-z0-9_-]{22}$/;
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Reads the head of a report, UTF-8 JSON; undefined for what is none, or is nested too deep. */
export function readReportHead(body: Uint8Array): ReportHead | undefined {
  const report = parseFlatJson(body);
  if (report === undefined) return undefined;
  const { ref, channel } = report;
  if (typeof ref !== "string" || !refPattern.test(ref)) return undefined;
  return { ref, channel: typeof channel === "string" && channelPattern.test(channel) ? channel : undefined };
}

/** Parses a JSON object whose nesting is bounded; undefined for anything else. */
export function parseFlatJson(body: Uint8Array): Record<string, unknown> | undefined {
  if (depthOf(body) > maxDepth) return undefined;
  try {
    const parsed: unknown = JSON.parse(utf8.decode(body));
    const isObject = typeof parsed === "object" && parsed !== null && !Array.isArray(parsed);
    return isObject ? (parsed as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

/**
 * How deep JSON is nested, found without parsing it. Bytes of UTF-8 beyond ASCII are none of the characters that count.
 * What is no JSON has some depth too, and is refused by the parser.
 */
function depthOf(json: Uint8Array): number {
  let depth = 0;
  let deepest = 0;
  let inText = false;
  for (let i = 0; i < json.length; i += 1) {
    const byte = json[i];
    if (inText) {
      if (byte === 0x5c) i += 1;
      else if (byte === 0x22) inText = false;
    } else if (byte === 0x22) inText = true;
    else if (byte === 0x7b || byte === 0x5b) {
      depth += 1;
      deepest = Math.max(deepest, depth);
    } else if (byte === 0x7d || byte === 0x5d) depth -= 1;
  }
  return deepest;
}

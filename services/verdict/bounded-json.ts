/**
 * Reads JSON text of at most `maxDepth` nested arrays and objects. Undefined for anything else: what is no UTF-8, no
 * JSON, or nested deeper, which is found before the text is parsed. The size of `bytes` is for the caller to bound.
 */
export function parseBoundedJson(bytes: Uint8Array, maxDepth: number): unknown {
  if (depthOf(bytes) > maxDepth) return undefined;
  try {
    return JSON.parse(utf8.decode(bytes));
  } catch {
    return undefined;
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** The deepest nesting by the brackets outside of strings. Counts too much, and never too little, in what is no JSON. */
function depthOf(bytes: Uint8Array): number {
  let depth = 0;
  let deepest = 0;
  let isInString = false;
  for (let index = 0; index < bytes.length; index += 1) {
    const byte = bytes[index];
    if (isInString) {
      if (byte === 0x5c) index += 1;
      else if (byte === 0x22) isInString = false;
    } else if (byte === 0x22) isInString = true;
    else if (byte === 0x5b || byte === 0x7b) {
      depth += 1;
      if (depth > deepest) deepest = depth;
    } else if (byte === 0x5d || byte === 0x7d) depth -= 1;
  }
  return deepest;
}

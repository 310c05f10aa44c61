import { OctetError } from "./octet-error.ts";

/** How much is measured: see FIELDS.md for what each mode sends and how long it may take. */
export type Mode = "full" | "lite" | "passive";

/** What a page passes to `verify` and `ready`. */
export interface VerifyOptions {
  /** Base URL of the edge, absolute or relative to the page, without query: `https://example.com/octet`. */
  apiUrl: string;
  /** The backend's reference of this session: 1 to 128 characters of `A-Z a-z 0-9 . _ ~ -`. */
  sessionRef: string;
  /** Where the latency channel is, if not at the WebSocket form of `apiUrl` with `/v1/ws`. */
  wsUrl?: string | undefined;
  /** Short for `mode: "passive"`. */
  passiveOnly?: boolean | undefined;
  /** Default `full`. */
  mode?: Mode | undefined;
  /** The nonce that the backend registered the session with: 16 to 128 characters of `A-Z a-z 0-9 _ -`. */
  nonce?: string | undefined;
  /** WebSocket URLs of landmarks to measure beside those that the edge names; 16 at most. Only `full` measures any. */
  landmarks?: readonly string[] | undefined;
  /** Ends the call: its promise rejects with `aborted`, and everything that it opened is closed. */
  signal?: AbortSignal | undefined;
}

/** Options that were checked, with all URLs absolute. */
export interface Settings {
  /** Without a slash at its end. */
  readonly apiUrl: string;
  readonly sessionRef: string;
  readonly wsUrl: string;
  readonly mode: Mode;
  readonly nonce: string | undefined;
  readonly landmarks: readonly string[];
  readonly signal: AbortSignal | undefined;
}

/** Landmarks in a report at most. */
export const maxLandmarks = 16;

const maxUrlLength = 512;
const refPattern = /^[A-Za-z0-9._~-]{1,128}$/;
const noncePattern = /^[A-Za-z0-9_-]{16,128}$/;
// What browsers let an https: page reach over http:.
const loopbackPattern = /^(localhost|.+\.localhost|127(\.\d+){3}|\[::1\])$/;

/**
 * Checks what a page passed. `base` is the URL of the page, which a relative `apiUrl` is taken from. Throws
 * `invalid_options` with a message that names the option; options that are not known are passed over.
 */
export function readOptions(options: unknown, base: string): Settings {
  if (typeof options !== "object" || options === null) throw invalid("options must be an object");
  const given = options as Record<string, unknown>;
  const { sessionRef, signal, landmarks = [] } = given;
  // An empty attribute of the page is no nonce.
  const nonce = given.nonce === "" ? undefined : given.nonce;
  const apiUrl = readApiUrl(given.apiUrl, base);
  if (typeof sessionRef !== "string" || !refPattern.test(sessionRef)) {
    throw invalid("sessionRef must be 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', '~' and '-'");
  }
  if (!isAbsent(nonce) && (typeof nonce !== "string" || !noncePattern.test(nonce))) {
    throw invalid("nonce must be 16 to 128 characters of A-Z, a-z, 0-9, '_' and '-'");
  }
  if (!Array.isArray(landmarks) || landmarks.length > maxLandmarks) {
    throw invalid(`landmarks must be an array of at most ${maxLandmarks} WebSocket URLs`);
  }
  const landmarkUrls = landmarks.map((each) => readSocketUrl(each));
  if (landmarkUrls.some((each) => each === undefined)) {
    throw invalid(`landmarks must be ws: or wss: URLs of at most ${maxUrlLength} characters`);
  }
  const wsUrl = isAbsent(given.wsUrl) ? `${apiUrl.replace(/^http/, "ws")}/v1/ws` : readSocketUrl(given.wsUrl);
  if (wsUrl === undefined) throw invalid(`wsUrl must be a ws: or wss: URL of at most ${maxUrlLength} characters`);
  if (!isAbsent(signal) && !isSignal(signal)) throw invalid("signal must be an AbortSignal");
  return {
    apiUrl,
    sessionRef,
    wsUrl,
    mode: readMode(given.mode, given.passiveOnly),
    nonce: nonce ?? undefined,
    landmarks: unique(landmarkUrls as string[]),
    signal: signal ?? undefined,
  };
}

/** A WebSocket URL in its normal form without fragment; undefined for what is none, names a user, or is too long. */
export function readSocketUrl(value: unknown): string | undefined {
  if (typeof value !== "string" || value.length > maxUrlLength) return undefined;
  const url = parseUrl(value);
  if (url === undefined || !/^wss?:$/.test(url.protocol) || url.username !== "" || url.password !== "")
    return undefined;
  url.hash = "";
  return url.href.length > maxUrlLength ? undefined : url.href;
}

/** The values without those that came before. */
export function unique(values: readonly string[]): string[] {
  return values.filter((each, index) => values.indexOf(each) === index);
}

function readApiUrl(value: unknown, base: string): string {
  if (typeof value !== "string" || value === "" || value.length > maxUrlLength) {
    throw invalid(`apiUrl must be the edge's URL, of at most ${maxUrlLength} characters`);
  }
  const url = parseUrl(value, base);
  if (url === undefined || !/^https?:$/.test(url.protocol)) throw invalid("apiUrl must be an https: URL");
  if (url.username !== "" || url.password !== "") throw invalid("apiUrl must not name a user or a password");
  if (url.search !== "" || url.hash !== "") throw invalid("apiUrl must have no query and no fragment");
  const isMixed = url.protocol === "http:" && base.startsWith("https:") && !loopbackPattern.test(url.hostname);
  if (isMixed) throw invalid("apiUrl must be an https: URL where the page is one");
  return url.href.replace(/\/+$/, "");
}

function readMode(mode: unknown, passiveOnly: unknown): Mode {
  if (!isAbsent(passiveOnly) && typeof passiveOnly !== "boolean") throw invalid("passiveOnly must be a boolean");
  if (isAbsent(mode)) return passiveOnly === true ? "passive" : "full";
  if (mode !== "full" && mode !== "lite" && mode !== "passive") {
    throw invalid('mode must be "full", "lite" or "passive"');
  }
  if (passiveOnly === true && mode !== "passive") throw invalid(`passiveOnly contradicts mode "${mode}"`);
  return mode;
}

function parseUrl(value: string, base?: string): URL | undefined {
  try {
    return new URL(value, base);
  } catch {
    return undefined;
  }
}

function isAbsent(value: unknown): value is undefined | null {
  return value === undefined || value === null;
}

function isSignal(value: unknown): value is AbortSignal {
  const { aborted, addEventListener } = Object(value) as Partial<AbortSignal>;
  return typeof aborted === "boolean" && typeof addEventListener === "function";
}

function invalid(message: string): OctetError {
  return new OctetError("invalid_options", `octet: ${message}`);
}

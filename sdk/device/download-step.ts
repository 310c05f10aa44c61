import { parseRetryAfter } from "../reason.ts";

/** How far a download is. */
export interface DownloadProgress {
  /** The entity tag that the bytes came under; undefined before the first. */
  etag: string | undefined;
  /** How many bytes there are. */
  offset: number;
}

/** What an answer to a range request means for a download. */
export type DownloadStep =
  /** The body continues where the download is. */
  | { kind: "append" }
  /** The body is the whole artifact, under this entity tag. */
  | { kind: "restart"; etag: string | undefined }
  /** What there is cannot be continued: drop it and ask for the whole. */
  | { kind: "discard" }
  /** The credential or the download grant is no longer good: get a new one and ask again. */
  | { kind: "renew"; status: number }
  /** Ask again after this many milliseconds. */
  | { kind: "wait"; ms: number }
  /** Ask again after a back-off. */
  | { kind: "retry"; status: number }
  /** The mesh has another artifact there than the manifest says: this many bytes. */
  | { kind: "wrong-size"; sizeBytes: number }
  /** There is nothing to get. */
  | { kind: "fail"; status: number };

/**
 * Headers that ask for the rest of an artifact, under the condition that it is still the same (RFC 9110 sections 13.1.5
 * and 14.2). A weak entity tag cannot carry that condition: then the whole is asked for.
 */
export function rangeHeaders(progress: DownloadProgress): Record<string, string> {
  if (progress.offset === 0 || progress.etag === undefined || !isStrong(progress.etag)) return {};
  return { range: `bytes=${progress.offset}-`, "if-range": progress.etag };
}

/** Decides what an answer means. `sizeBytes` is the size that the manifest signs. */
export function downloadStep(
  answer: { status: number; headers: Headers },
  progress: DownloadProgress,
  sizeBytes: number,
  nowMs: number = Date.now(),
): DownloadStep {
  const { status, headers } = answer;
  switch (status) {
    case 200: {
      const length = parseLength(headers.get("content-length"));
      if (length !== undefined && length !== sizeBytes) return { kind: "wrong-size", sizeBytes: length };
      return { kind: "restart", etag: headers.get("etag") ?? undefined };
    }
    case 206: {
      // RFC 9110 section 14.4.
      const range = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16})$/.exec(headers.get("content-range") ?? "");
      if (range === null) return { kind: "discard" };
      if (Number(range[3]) !== sizeBytes) return { kind: "wrong-size", sizeBytes: Number(range[3]) };
      const continues = Number(range[1]) === progress.offset && progress.offset > 0;
      const isSame = progress.etag !== undefined && headers.get("etag") === progress.etag;
      return continues && isSame ? { kind: "append" } : { kind: "discard" };
    }
    case 416:
      return { kind: "discard" };
    case 401:
    case 403:
      return { kind: "renew", status };
    case 429:
    case 503: {
      const ms = parseRetryAfter(headers.get("retry-after"), nowMs);
      return ms === undefined ? { kind: "retry", status } : { kind: "wait", ms };
    }
    case 408:
    case 425:
    case 500:
    case 502:
    case 504:
      return { kind: "retry", status };
    default:
      return { kind: "fail", status };
  }
}

function isStrong(etag: string): boolean {
  return /^"[\x21\x23-\x7e]*"$/.test(etag);
}

function parseLength(value: string | null): number | undefined {
  return value !== null && /^\d{1,16}$/.test(value) ? Number(value) : undefined;
}

import type { Environment } from "./environment.ts";
import type { Mode } from "./options.ts";
import type { RoundTrips } from "./round-trips.ts";

/** What is sent to the edge. FIELDS.md says of each field why it is sent; nothing else leaves the browser. */
export interface Report {
  /** Version of this shape. */
  readonly v: 1;
  /** The backend's reference of the session, as the page passed it. */
  readonly ref: string;
  /** The backend's nonce, as the page passed it. */
  readonly nonce?: string;
  readonly mode: Mode;
  /** The edge's id of the latency channel: what the edge measured there belongs to this report. */
  readonly channel?: string;
  readonly env: Environment;
  readonly timing: {
    /** Resolution of the page's clock in milliseconds; 100 where it was not seen to tick. */
    readonly step: number;
    /** Round trips of requests to the edge; absent where the clock is too coarse, and in other modes than `full`. */
    readonly rt?: readonly RoundTrips[];
    /** Pings that the browser answered on the edge's channel. */
    readonly pings: number;
    /** How long the collection took, in milliseconds. */
    readonly ms: number;
  };
  /** What landmarks measured and signed. */
  readonly landmarks?: readonly { readonly url: string; readonly m: string }[];
  /** `done`, or why a part is missing: the time was over, or the latency channel failed. */
  readonly end: "done" | "timeout" | "failed";
}

/** Bytes of a report at most: the edge takes 65,536, and browsers let requests of this size outlive the page. */
export const maxReportBytes = 60_000;

/** Writes a report as JSON. Leaves out landmarks from the end while it has more than `maxReportBytes`. */
export function encodeReport(report: Report): string {
  const landmarks = report.landmarks ?? [];
  for (let kept = landmarks.length; ; kept -= 1) {
    const fitted = kept === landmarks.length ? report : { ...report, landmarks: landmarks.slice(0, kept) };
    const text = JSON.stringify(fitted);
    if (kept === 0 || new TextEncoder().encode(text).length <= maxReportBytes) return text;
  }
}

import { fail, Reason } from "@octomesh/mesh/errors";
import { parseBoundedJson } from "./bounded-json.ts";

/** What a collector reported of one browser session, read and bounded. None of it is believed by itself. */
export interface CollectorReport {
  /** Version of the report's form. */
  readonly version: number;
  /** The partner's reference of the session. */
  readonly sessionRef: string;
  /** The nonce of the session; empty where the page had none. */
  readonly nonce: string;
  /** How much the collector was allowed to measure: `full`, `lite` or `passive`. */
  readonly mode: string;
  /** BCP 47 tags, the preferred first. */
  readonly languages: readonly string[];
  /** IANA name of the time zone; empty where unknown. */
  readonly timeZone: string;
  /** Minutes east of UTC. */
  readonly utcOffsetMinutes: number | undefined;
  /** Operating system that the browser claims; empty where unknown. */
  readonly platform: string;
  readonly mobile: boolean | undefined;
  /** Resolution of the browser's clock, in milliseconds. */
  readonly clockStepMs: number;
  /** Round trips by Resource Timing, per URL. */
  readonly roundTrips: readonly {
    readonly url: string;
    readonly count: number;
    readonly minMs: number;
    readonly medianMs: number;
  }[];
  /** Signed measurements of landmarks, not verified yet. */
  readonly measurements: readonly Uint8Array[];
  /** Why collection ended early; `done` where it did not, empty where it is not said. */
  readonly end: string;
}

/** Version of the report that collectors write today. */
export const reportVersion = 1;
/** The oldest version that is taken: the one before today's. */
export const oldestReportVersion = Math.max(1, reportVersion - 1);

const maxReportBytes = 65_536;
const maxDepth = 8;
const coarseClockMs = 100;

/**
 * Reads a report (services/edge-relay/collector/FIELDS.md): at most 64 KiB of JSON, nested at most 8 deep, every string,
 * list and number within its bounds. Fields that are not known are passed over, as newer collectors have them. Throws
 * REQUEST_TOO_LARGE, CLIENT_TOO_OLD, and for everything else SIGNALS_INCOMPLETE, whose `field` says where; no value of
 * the report is in an error.
 */
export function readCollectorReport(bytes: Uint8Array): CollectorReport {
  if (bytes.length > maxReportBytes) {
    const max = String(maxReportBytes);
    throw fail(Reason.REQUEST_TOO_LARGE, `a collector's report has at most ${max} bytes`, { max });
  }
  const report = objectOf(parseBoundedJson(bytes, maxDepth), "report");
  const version = numberOf(report.v, "v", { min: 0, max: 1_000_000 });
  if (version < oldestReportVersion) {
    const oldest = String(oldestReportVersion);
    throw fail(Reason.CLIENT_TOO_OLD, `reports of collectors are taken from version ${oldest} on`, { oldest });
  }
  const env = objectOf(report.env ?? {}, "env");
  const timing = objectOf(report.timing ?? {}, "timing");
  const offset = optional(env.offset, (value) => numberOf(value, "env.offset", { min: -1440, max: 1440 }));
  return {
    version,
    sessionRef: textOf(report.ref, "ref", { min: 1, max: 128 }),
    nonce: textOf(report.nonce ?? "", "nonce", { max: 128 }),
    mode: textOf(report.mode, "mode", { min: 1, max: 16 }),
    languages: listOf(env.languages ?? [], "env.languages", 10).map((each) =>
      textOf(each, "env.languages", { max: 35 }),
    ),
    timeZone: textOf(env.tz ?? "", "env.tz", { max: 64 }),
    // Browsers count the minutes from local time to UTC.
    utcOffsetMinutes: offset === undefined ? undefined : 0 - offset,
    platform: textOf(env.platform ?? "", "env.platform", { max: 64 }),
    mobile: optional(env.mobile, (value) => booleanOf(value, "env.mobile")),
    clockStepMs: numberOf(timing.step ?? coarseClockMs, "timing.step", { min: 0, max: 60_000 }),
    roundTrips: listOf(timing.rt ?? [], "timing.rt", 16).map(roundTripsOf),
    measurements: listOf(report.landmarks ?? [], "landmarks", 16).map(measurementOf),
    end: textOf(report.end ?? "", "end", { max: 16 }),
  };
}

function roundTripsOf(value: unknown): CollectorReport["roundTrips"][number] {
  const { url, n, min, med } = objectOf(value, "timing.rt");
  const ms = { min: 0, max: 600_000 };
  return {
    url: textOf(url, "timing.rt.url", { max: 512 }),
    count: numberOf(n, "timing.rt.n", { min: 0, max: 1000 }),
    minMs: numberOf(min, "timing.rt.min", ms),
    medianMs: numberOf(med, "timing.rt.med", ms),
  };
}

function measurementOf(value: unknown): Uint8Array {
  const text = textOf(objectOf(value, "landmarks").m, "landmarks.m", { min: 1, max: 5700 });
  if (!/^[A-Za-z0-9_-]+$/.test(text)) throw incomplete("landmarks.m");
  return new Uint8Array(Buffer.from(text, "base64url"));
}

function optional<T>(value: unknown, read: (value: unknown) => T): T | undefined {
  return value === undefined || value === null ? undefined : read(value);
}

function objectOf(value: unknown, field: string): Readonly<Record<string, unknown>> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw incomplete(field);
  return value as Record<string, unknown>;
}

function listOf(value: unknown, field: string, maxItems: number): readonly unknown[] {
  if (!Array.isArray(value) || value.length > maxItems) throw incomplete(field);
  return value;
}

/** Bounds are in characters, as the contract's are. */
function textOf(value: unknown, field: string, { min = 0, max }: { min?: number; max: number }): string {
  if (typeof value !== "string" || value.length > 2 * max) throw incomplete(field);
  const length = [...value].length;
  // A lone half of a surrogate pair has no UTF-8 form, and so no place in what is stored and signed.
  if (length < min || length > max || /\p{Surrogate}/u.test(value)) throw incomplete(field);
  return value;
}

function numberOf(value: unknown, field: string, { min, max }: { min: number; max: number }): number {
  if (typeof value !== "number" || !(value >= min && value <= max)) throw incomplete(field);
  return value;
}

function booleanOf(value: unknown, field: string): boolean {
  if (typeof value !== "boolean") throw incomplete(field);
  return value;
}

function incomplete(field: string): Error {
  return fail(Reason.SIGNALS_INCOMPLETE, `${field} of the collector's report is missing, or is not what it must be`, {
    field,
  });
}

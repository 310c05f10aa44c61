import { collect } from "./collect.ts";
import { OctetError } from "./octet-error.ts";
import { readOptions, type Settings, type VerifyOptions } from "./options.ts";
import { encodeReport, type Report } from "./report.ts";
import { type Answer, sendReport } from "./send-report.ts";

export type { OctetError, OctetErrorCode } from "./octet-error.ts";
export type { Mode, VerifyOptions } from "./options.ts";
export type { Report } from "./report.ts";
export type { Answer } from "./send-report.ts";

/** The edge keeps what it measured for a minute: what is older than this, in milliseconds, is measured anew. */
const freshMs = 40_000;

interface Prepared {
  readonly key: string;
  readonly report: Promise<Report>;
  readonly abort: AbortController;
  /** When it ended, by the page's clock; undefined while it lasts. */
  endedAt: number | undefined;
}

let prepared: Prepared | undefined;

/**
 * Measures the session and reports it to the edge. Resolves to the edge's answer, `{ ok: true }`. Rejects with an
 * `OctetError`, whose `code` is stable: `insecure_context` at once on a page that is not secure, `invalid_options`,
 * `aborted`, `network`, or the edge's own code. Takes up to 2 s (`lite`: 0.6 s) to measure, and then a request.
 */
export async function verify(options: VerifyOptions): Promise<Answer> {
  const settings = start(options);
  const early = takePrepared(settings);
  const report = (early && (await reportOf(early, settings.signal))) ?? (await collect(settings, settings.signal));
  return sendReport(settings.apiUrl, encodeReport(report), settings.signal);
}

/**
 * Starts to measure before the page needs the answer, and resolves when that has ended. `verify` with the same options
 * within the next 40 s, or while it still lasts, sends what was measured here and does not measure again. Nothing is
 * sent before. One measurement is kept at a time: another `ready` takes its place. Rejects as `verify` does, save for what
 * only sending can meet.
 */
export async function ready(options: VerifyOptions): Promise<void> {
  const settings = start(options);
  prepared?.abort.abort();
  const abort = new AbortController();
  const mine: Prepared = { key: keyOf(settings), report: collect(settings, abort.signal), abort, endedAt: undefined };
  prepared = mine;
  try {
    await orAborted(mine, settings.signal);
    mine.endedAt = performance.now();
  } catch (error) {
    if (prepared === mine) prepared = undefined;
    throw error;
  }
}

function start(options: VerifyOptions): Settings {
  if (globalThis.isSecureContext !== true || globalThis.crypto?.subtle === undefined) {
    throw new OctetError("insecure_context", "octet: works only in a secure context: serve the page over https");
  }
  const settings = readOptions(options, location.href);
  if (settings.signal?.aborted === true) throw new OctetError("aborted", "octet: aborted by the page");
  return settings;
}

function keyOf({ signal: _signal, ...rest }: Settings): string {
  return JSON.stringify(rest);
}

function takePrepared(settings: Settings): Prepared | undefined {
  const found = prepared;
  if (found === undefined || found.key !== keyOf(settings)) return undefined;
  prepared = undefined;
  return found.endedAt === undefined || performance.now() - found.endedAt < freshMs ? found : undefined;
}

/** The prepared report; undefined where whoever prepared it gave up, and this caller did not. */
async function reportOf(early: Prepared, signal: AbortSignal | undefined): Promise<Report | undefined> {
  try {
    return await orAborted(early, signal);
  } catch (error) {
    if (signal?.aborted === true) throw error;
    return undefined;
  }
}

/** The prepared report; the signal ends its measurement. */
async function orAborted({ report, abort }: Prepared, signal: AbortSignal | undefined): Promise<Report> {
  const stop = (): void => abort.abort();
  signal?.addEventListener("abort", stop);
  try {
    return await report;
  } finally {
    signal?.removeEventListener("abort", stop);
  }
}

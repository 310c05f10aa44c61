/**
 * Code of a failure, stable across versions. The collector's own are `insecure_context`, `invalid_options`, `aborted`
 * and `network`; any other is the edge's, as it answered it (`missing_fields`, `session_reported`, `rate_limited`, …).
 */
export type OctetErrorCode = "insecure_context" | "invalid_options" | "aborted" | "network" | (string & {});

/** What the promises of `verify` and `ready` reject with. */
export class OctetError extends Error {
  override readonly name = "OctetError";
  readonly code: OctetErrorCode;
  /** The HTTP status of the edge's answer; undefined where there was no answer. */
  readonly status: number | undefined;

  constructor(code: OctetErrorCode, message: string, status?: number) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

import { create, getOption, hasOption } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import { code as codeOption, Reason, ReasonSchema } from "@octomesh/proto/octomesh/errors/v1/reason_pb";

export { Reason };

/** The `domain` of every ErrorInfo of the mesh. */
export const errorDomain = "octomesh";

/** What else an error may carry. */
export interface FailOptions {
  /** When trying again makes sense: becomes `google.rpc.RetryInfo`, and `Retry-After` over REST and Connect. */
  retryAfterMs?: number;
  /** What went wrong underneath. Logged, never sent. */
  cause?: unknown;
}

const codes = new Map<Reason, Code>();
const names = new Map<Reason, string>();
for (const value of ReasonSchema.values) {
  names.set(value.number, value.name.replace(/^REASON_/, ""));
  if (hasOption(value, codeOption)) codes.set(value.number, Number(getOption(value, codeOption)) as Code);
}

/**
 * Makes the error of a refusal: `throw fail(Reason.SCOPE_MISSING, "…", { scope })`. The status code is the one that the
 * contract gives the reason; whatever varies in the message belongs into the metadata too (AIP-193): at most 32 facts,
 * none of them secret or personal.
 */
export function fail(
  reason: Reason,
  message: string,
  metadata: Record<string, string> = {},
  options: FailOptions = {},
): ConnectError {
  const code = codes.get(reason) ?? Code.Internal;
  const error = new ConnectError(message, code, undefined, undefined, options.cause);
  error.details.push({
    desc: ErrorInfoSchema,
    value: create(ErrorInfoSchema, { reason: nameOfReason(reason), domain: errorDomain, metadata }),
  });
  if (options.retryAfterMs !== undefined) {
    const retryDelay = durationFromMs(Math.max(0, Math.ceil(options.retryAfterMs)));
    error.details.push({ desc: RetryInfoSchema, value: create(RetryInfoSchema, { retryDelay }) });
    error.metadata.set("retry-after", String(Math.max(1, Math.ceil(options.retryAfterMs / 1000))));
  }
  return error;
}

/** The reason that an error carries, ours or one that came over the wire; undefined if it carries none. */
export function reasonOf(error: unknown): Reason | undefined {
  if (!(error instanceof ConnectError)) return undefined;
  const info = error.findDetails(ErrorInfoSchema).find((detail) => detail.domain === errorDomain);
  if (info === undefined) return undefined;
  return ReasonSchema.values.find((value) => value.name === `REASON_${info.reason}`)?.number;
}

/** The name of a reason as it stands in ErrorInfo: without the enum's prefix. */
export function nameOfReason(reason: Reason): string {
  return names.get(reason) ?? "INTERNAL";
}

/** The status code that the contract gives a reason. */
export function codeOfReason(reason: Reason): Code {
  return codes.get(reason) ?? Code.Internal;
}

import { create, type DescMessage, type DescMethod } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Transport } from "@connectrpc/connect";
import { type BackoffOptions, backoffMs } from "./backoff.ts";
import type { Credential } from "./credential.ts";
import { reasonOf, retryAfterMsOf } from "./reason.ts";
import { abortable, wait } from "./wait.ts";

/** How calls are repeated. */
export interface RetryOptions extends BackoffOptions {
  /** How many attempts there are at most, the first included. Default 4. */
  maxAttempts?: number;
}

/** An attempt that failed and will be repeated. */
export interface RetryEvent {
  /** The method, such as `octomesh.model.v1.ModelService/ListModels`. */
  method: string;
  /** Which attempt failed; 1 is the first. */
  attempt: number;
  /** How long until the next one, in milliseconds. */
  delayMs: number;
  /** Why it failed. */
  error: ConnectError;
}

/** Settings of a resilient transport. */
export interface ResilienceOptions {
  /** What calls prove themselves with. None if not given. */
  credential?: Credential;
  /** How long a unary call may take over all its attempts, in milliseconds, where the call says nothing. Default 30,000. */
  timeoutMs?: number;
  /** How calls are repeated; false never repeats one. */
  retry?: RetryOptions | false;
  /** Told of every attempt that will be repeated. */
  onRetry?: (event: RetryEvent) => void;
  /** Ends every call, those that are still to come too. */
  ended?: AbortSignal;
  /** Random numbers in [0, 1). */
  random?: () => number;
  /** Milliseconds of a clock that never goes back. */
  monotonicMs?: () => number;
  /** Waits; rejects when the signal aborts. */
  sleep?: (ms: number, signal?: AbortSignal) => Promise<void>;
  /** Makes request ids: at most 64 characters, never the same twice. */
  newRequestId?: () => string;
}

/**
 * Puts around a transport what every client of the mesh needs:
 *
 * - the credential, renewed where it can be, and one more attempt when it was (CREDENTIAL_EXPIRED);
 * - a deadline for every unary call, over all its attempts (`timeoutMs` of the call, where it is 0 or less: none);
 * - a `request_id` for every request that has the field and leaves it empty, the same one in every attempt;
 * - retries of methods that the contract declares NO_SIDE_EFFECTS or IDEMPOTENT: after UNAVAILABLE or a lost connection
 *   with exponential back-off and full jitter, after RESOURCE_EXHAUSTED only as the server asks (RetryInfo or
 *   Retry-After). A wait that would pass the deadline is not begun: the error is thrown instead.
 *
 * What a credential throws that is no ConnectError reaches the caller as it is. A lost connection is UNAVAILABLE, whatever the transport beneath makes of it. Streams get the credential, and are
 * neither repeated nor limited in time; one that ends because its credential has expired renews it for the next.
 */
export function resilientTransport(inner: Transport, options: ResilienceOptions = {}): Transport {
  const retry = options.retry === false ? { maxAttempts: 1 } : (options.retry ?? {});
  const maxAttempts = retry.maxAttempts ?? 4;
  const random = options.random ?? Math.random;
  const monotonicMs = options.monotonicMs ?? (() => performance.now());
  const sleep = options.sleep ?? wait;
  const newRequestId = options.newRequestId ?? (() => crypto.randomUUID());
  const { credential } = options;
  const bare = credential === undefined ? undefined : resilientTransport(inner, { ...options, credential: undefined });

  async function authorize(header: HeadersInit | undefined, signal: AbortSignal | undefined) {
    const headers = new Headers(header);
    if (bare === undefined || credential === undefined || headers.has("authorization")) {
      return { headers, used: undefined };
    }
    const own = credential.authorization(bare).catch((error: unknown) => {
      throw error instanceof ConnectError ? error : new LocalFailure(error);
    });
    const used = await abortable(own, signal);
    if (used !== undefined) headers.set("authorization", used);
    return { headers, used };
  }

  async function renewed(error: unknown, used: string | undefined, signal: AbortSignal | undefined): Promise<boolean> {
    if (bare === undefined || used === undefined || credential?.renew === undefined) return false;
    const reason = reasonOf(error);
    if (reason !== "CREDENTIAL_EXPIRED" && reason !== "CREDENTIAL_REVOKED") return false;
    return await abortable(credential.renew(used, bare, reason), signal);
  }

  const call: Transport["unary"] = async (method, signal, timeoutMs, header, input, contextValues) => {
    const message = withRequestId(method.input, create(method.input, input), newRequestId) as typeof input;
    const total = timeoutMs ?? options.timeoutMs ?? 30_000;
    const deadline = total <= 0 ? Number.POSITIVE_INFINITY : monotonicMs() + total;
    let hasRenewed = false;
    for (let attempt = 1; ; attempt++) {
      let used: string | undefined;
      try {
        const authorized = await authorize(header, signal);
        used = authorized.used;
        const left = deadline - monotonicMs();
        if (left <= 0) throw new ConnectError("the call's time is over", Code.DeadlineExceeded);
        const leftMs = Number.isFinite(left) ? Math.ceil(left) : 0;
        return await inner.unary(method, signal, leftMs, authorized.headers, message, contextValues);
      } catch (reason) {
        if (reason instanceof LocalFailure) throw reason.cause;
        const error = normalized(reason, signal);
        if (!hasRenewed && (await renewed(error, used, signal))) {
          hasRenewed = true;
          continue;
        }
        const delayMs = isRepeatable(method) ? delayBeforeRetry(error, attempt) : undefined;
        if (delayMs === undefined || attempt >= maxAttempts || monotonicMs() + delayMs >= deadline) throw error;
        options.onRetry?.({ method: `${method.parent.typeName}/${method.name}`, attempt, delayMs, error });
        try {
          await sleep(delayMs, signal);
        } catch (aborted) {
          throw normalized(aborted, signal);
        }
      }
    }
  };

  return {
    async unary(method, callSignal, timeoutMs, header, input, contextValues) {
      const { signal, release } = either(callSignal, options.ended);
      try {
        return await call(method, signal, timeoutMs, header, input, contextValues);
      } finally {
        release();
      }
    },
    async stream(method, callSignal, timeoutMs, header, input, contextValues) {
      const { signal, release } = either(callSignal, options.ended);
      let used: string | undefined;
      const errorOf = async (reason: unknown) => {
        if (reason instanceof LocalFailure) return reason.cause;
        const error = normalized(reason, signal);
        // The stream is not repeated, but the next one will have a credential that is good.
        await renewed(error, used, signal).catch(() => {});
        return error;
      };
      try {
        const authorized = await authorize(header, signal);
        used = authorized.used;
        const response = await inner.stream(method, signal, timeoutMs ?? 0, authorized.headers, input, contextValues);
        return { ...response, message: watched(response.message, errorOf, release) };
      } catch (reason) {
        release();
        throw await errorOf(reason);
      }
    },
  };

  function delayBeforeRetry(error: ConnectError, attempt: number): number | undefined {
    const asked = retryAfterMsOf(error);
    if (error.code === Code.ResourceExhausted) return asked === undefined ? undefined : asked + random() * 250;
    if (error.code !== Code.Unavailable) return undefined;
    return Math.max(asked ?? 0, backoffMs(attempt, retry, random));
  }
}

/** What a credential threw that no call has to do with, such as a store that cannot be read: the caller's as it is. */
class LocalFailure extends Error {
  constructor(cause: unknown) {
    super("the credential is not to be had", { cause });
  }
}

/** A signal that aborts with either; `release` stops listening (AbortSignal.any would stay attached to a long-lived one). */
function either(one: AbortSignal | undefined, other: AbortSignal | undefined) {
  if (one === undefined || other === undefined) return { signal: one ?? other, release: () => {} };
  const controller = new AbortController();
  const signals = [one, other];
  const release = () => {
    for (const signal of signals) signal.removeEventListener("abort", onAbort);
  };
  const onAbort = () => {
    release();
    controller.abort(signals.find((signal) => signal.aborted)?.reason);
  };
  for (const signal of signals) signal.addEventListener("abort", onAbort);
  if (signals.some((signal) => signal.aborted)) onAbort();
  return { signal: controller.signal, release };
}

function isRepeatable(method: DescMethod): boolean {
  return method.idempotency === IdempotencyLevel.NO_SIDE_EFFECTS || method.idempotency === IdempotencyLevel.IDEMPOTENT;
}

/** A message with a request id: a copy, so that a request object that is sent twice is two requests. */
function withRequestId<T extends object>(schema: DescMessage, message: T, newRequestId: () => string): T {
  const field = schema.fields.find((candidate) => candidate.name === "request_id");
  if (field === undefined || (message as Record<string, unknown>)[field.localName] !== "") return message;
  return { ...message, [field.localName]: newRequestId() };
}

const lostConnection = new Set([
  "ECONNRESET",
  "ECONNREFUSED",
  "ECONNABORTED",
  "EPIPE",
  "ETIMEDOUT",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ENETDOWN",
  "ENOTFOUND",
  "EAI_AGAIN",
  "ERR_STREAM_DESTROYED",
  "ERR_STREAM_PREMATURE_CLOSE",
  "ERR_HTTP2_INVALID_STREAM",
  "ERR_HTTP2_INVALID_SESSION",
  "ERR_HTTP2_SESSION_ERROR",
  "ERR_HTTP2_STREAM_CANCEL",
  "ERR_HTTP2_GOAWAY_SESSION",
]);

function normalized(reason: unknown, signal: AbortSignal | undefined): ConnectError {
  const error = ConnectError.from(reason, signal?.aborted ? Code.Canceled : Code.Unknown);
  if (signal?.aborted || reasonOf(error) !== undefined || error.code === Code.Unavailable) return error;
  // Nobody on this side cancelled it: the other end took the stream or the connection away.
  if (error.code === Code.Canceled) return new ConnectError("connection lost", Code.Unavailable, undefined, [], reason);
  for (let cause: unknown = reason, depth = 0; cause instanceof Error && depth < 8; cause = cause.cause, depth++) {
    // Browsers say "network error" with a plain TypeError and no code (Fetch standard, "network error").
    const isFetchFailure = cause instanceof TypeError && /fetch|network|load failed/i.test(cause.message);
    if (isFetchFailure || ("code" in cause && lostConnection.has(String(cause.code)))) {
      return new ConnectError(`connection lost: ${cause.message}`, Code.Unavailable, undefined, undefined, reason);
    }
  }
  return error;
}

async function* watched<T>(
  messages: AsyncIterable<T>,
  errorOf: (reason: unknown) => Promise<unknown>,
  onEnd: () => void,
): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (reason) {
    throw await errorOf(reason);
  } finally {
    onEnd();
  }
}

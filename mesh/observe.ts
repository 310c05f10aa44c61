import { randomBytes } from "node:crypto";
import { create, type DescMethod, type Message } from "@bufbuild/protobuf";
import { Code, ConnectError, type Interceptor, type StreamResponse, type UnaryResponse } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import type { Logger } from "pino";
import { Counter, Histogram, type Registry } from "prom-client";
import type { Call } from "./call.ts";
import { callKey } from "./call-context.ts";
import { connectionKey } from "./connection.ts";
import { mapDatabaseError } from "./database-error.ts";
import { downstreamOf } from "./downstream.ts";
import { fail, Reason, reasonOf } from "./errors.ts";
import { redact } from "./redact.ts";
import { noTelemetry, type ServerSpan, type Telemetry } from "./telemetry.ts";

/** Header by which a caller names its request, and by which every answer repeats the name. */
export const requestIdHeader = "x-request-id";

const requestIdPattern = /^[A-Za-z0-9._-]{8,64}$/;

/** The caller's name of the request if it is well formed, else a new one: 22 base64url characters. */
export function requestIdOf(header: Headers): string {
  const given = header.get(requestIdHeader);
  if (given !== null && requestIdPattern.test(given)) return given;
  const id = randomBytes(16).toString("base64url");
  header.set(requestIdHeader, id);
  return id;
}

/** Counts calls and times them. One per service. */
export interface RpcMetrics {
  observe(method: string, code: string, seconds: number): void;
}

/** Registers `octomesh_rpc_calls_total` and `octomesh_rpc_seconds`. */
export function createRpcMetrics(registry: Registry): RpcMetrics {
  const calls = new Counter({
    name: "octomesh_rpc_calls_total",
    help: "Calls answered, by method and status code",
    labelNames: ["method", "code"],
    registers: [registry],
  });
  const seconds = new Histogram({
    name: "octomesh_rpc_seconds",
    help: "Time from a call's admission to its answer",
    labelNames: ["method"],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
    registers: [registry],
  });
  return {
    observe(method, code, elapsed) {
      calls.inc({ method, code });
      seconds.observe({ method }, elapsed);
    },
  };
}

/**
 * Begins to observe a call. The function that it returns ends that: it logs one line, counts the call, ends its span,
 * and answers with the error made fit to be sent. At the level `trace` the line holds the request, redacted.
 */
export function recordCall(
  log: Logger,
  metrics: RpcMetrics,
  method: DescMethod,
  requestId: string,
  span: ServerSpan,
  message?: Message,
): (call: Call | undefined, error?: unknown) => ConnectError | undefined {
  const started = performance.now();
  const name = `${method.parent.typeName}/${method.name}`;
  return (call, error) => {
    const elapsed = performance.now() - started;
    const refused = error === undefined ? undefined : presentable(error, log, name, requestId);
    const code = refused === undefined ? "ok" : Code[refused.code].toLowerCase();
    const reason = refused === undefined ? undefined : errorReason(refused);
    metrics.observe(name, code, elapsed / 1000);
    span.end({ code: refused?.code, reason, caller: call?.caller.kind });
    const line = {
      method: name,
      request_id: requestId,
      trace_id: span.traceId,
      code,
      ms: Math.round(elapsed * 100) / 100,
      caller: call?.caller.kind,
      caller_id: call?.caller.id,
      org_id: call?.orgId,
      reason,
      request: message !== undefined && log.isLevelEnabled("trace") ? redact(method.input, message) : undefined,
    };
    if (refused?.code === Code.Internal) log.error(line, "call failed");
    else log.debug(line, "call");
    refused?.metadata.set(requestIdHeader, requestId);
    return refused;
  };
}

/**
 * The outermost interceptor: names the request, makes its span, logs one line for it, counts it, and makes every error
 * fit to be sent: with an ErrorInfo, without the text of what nobody meant to throw.
 */
export function observe(log: Logger, metrics: RpcMetrics, telemetry: Telemetry = noTelemetry): Interceptor {
  return (next) => async (request) => {
    const requestId = requestIdOf(request.header);
    const { method, header } = request;
    const span = telemetry.serverSpan({ method, header, connection: request.contextValues.get(connectionKey) });
    const message = request.stream ? undefined : request.message;
    const record = recordCall(log, metrics, method, requestId, span, message);
    let ended = false;
    const finish = (error?: unknown): ConnectError | undefined => {
      ended = true;
      return record(request.contextValues.get(callKey), error);
    };
    let response: UnaryResponse | StreamResponse;
    try {
      response = await span.run(() => next(request));
    } catch (error) {
      throw finish(error);
    }
    response.header.set(requestIdHeader, requestId);
    if (!response.stream) {
      finish();
      return response;
    }
    // Where the caller goes away nobody may read the stream to its end.
    const onGone = (): void => {
      if (!ended) finish(gone());
    };
    request.signal.addEventListener("abort", onGone, { once: true });
    return { ...response, message: observed(span.bind(response.message), () => ended, finish) };
  };
}

async function* observed<T>(
  messages: AsyncIterable<T>,
  hasEnded: () => boolean,
  finish: (error?: unknown) => unknown,
): AsyncIterable<T> {
  try {
    yield* messages;
    if (!hasEnded()) finish();
  } catch (error) {
    if (hasEnded()) throw gone();
    throw finish(error);
  } finally {
    if (!hasEnded()) finish(gone());
  }
}

function gone(): ConnectError {
  return fail(Reason.CANCELLED, "the caller ended the stream");
}

/** Refusals of the calling service by a sibling: a fault between services, whoever the call was made for. */
const refusalsOfPeers: readonly (Reason | undefined)[] = [Reason.PEER_NOT_ALLOWED, Reason.CALLER_KIND_NOT_ALLOWED];

/** What a sibling says of its own condition, which is nobody's fault and passes: the caller may try again. */
const conditionsOfSiblings: readonly Reason[] = [Reason.STORAGE_FULL, Reason.OVERLOADED, Reason.TRANSACTION_CONFLICT];

/** Codes of errors that nobody chose: what they say is for the log. */
const codesOfFaults: readonly Code[] = [Code.Unknown, Code.Internal, Code.DataLoss];

/**
 * Turns whatever was thrown into an error that may be sent. A sibling's refusal is passed on only where the call was
 * made on the caller's behalf and the sibling itself gave a reason; the text of faults stays in the log.
 */
export function presentable(thrown: unknown, log: Logger, method: string, requestId: string): ConnectError {
  const error = mapDatabaseError(thrown);
  if (error instanceof ConnectError) {
    const reason = reasonOf(error);
    const downstream = downstreamOf(error);
    if (downstream !== undefined && (!downstream.delegated || reason === undefined)) {
      if (error.code === Code.Unavailable || error.code === Code.DeadlineExceeded || error.code === Code.Canceled) {
        return fail(
          Reason.DEPENDENCY_UNAVAILABLE,
          `${downstream.service} cannot be reached`,
          { service: downstream.service },
          { retryAfterMs: 1000, cause: error },
        );
      }
    }
    if (downstream !== undefined && reason !== undefined && conditionsOfSiblings.includes(reason)) {
      return fail(reason, error.rawMessage, { service: downstream.service }, { retryAfterMs: 1000, cause: error });
    }
    const isFaultBetweenUs =
      downstream !== undefined && (!downstream.delegated || reason === undefined || refusalsOfPeers.includes(reason));
    if (isFaultBetweenUs) {
      log.error({ method, request_id: requestId, err: error }, "a sibling refused a call");
      return internalError(error);
    }
    if (reason === Reason.INTERNAL && error.rawMessage === internalMessage) return error;
    if (!codesOfFaults.includes(error.code)) {
      if (reason === undefined) addReason(error);
      return error;
    }
  }
  if (error instanceof Error && error.name === "AbortError") {
    return fail(Reason.CANCELLED, "the call was cancelled", {}, { cause: error });
  }
  log.error({ method, request_id: requestId, err: error }, "unexpected error");
  return internalError(error);
}

const internalMessage = "internal error";

function internalError(cause: unknown): ConnectError {
  return fail(Reason.INTERNAL, internalMessage, {}, { cause });
}

const reasonsOfCodes: Partial<Record<Code, string>> = {
  [Code.InvalidArgument]: "VALIDATION_FAILED",
  [Code.DeadlineExceeded]: "DEADLINE_EXCEEDED",
  [Code.Canceled]: "CANCELLED",
  [Code.Unimplemented]: "NOT_IMPLEMENTED",
  [Code.ResourceExhausted]: "REQUEST_TOO_LARGE",
  [Code.Unavailable]: "SERVICE_UNAVAILABLE",
};

/** Errors of the libraries below carry no ErrorInfo; the code says which reason it is. */
function addReason(error: ConnectError): void {
  const reason = reasonsOfCodes[error.code];
  if (reason === undefined) return;
  error.details.push({
    desc: ErrorInfoSchema,
    value: create(ErrorInfoSchema, { reason, domain: "octomesh", metadata: {} }),
  });
}

function errorReason(error: ConnectError): string | undefined {
  return error.findDetails(ErrorInfoSchema)[0]?.reason;
}

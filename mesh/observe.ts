import { randomBytes } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, type Interceptor, type StreamResponse, type UnaryResponse } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import type { Logger } from "pino";
import { Counter, Histogram, type Registry } from "prom-client";
import { callKey } from "./call-context.ts";
import { mapDatabaseError } from "./database-error.ts";
import { downstreamOf } from "./downstream.ts";
import { fail, Reason, reasonOf } from "./errors.ts";

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
 * The outermost interceptor: names the request, logs one line for it, counts it, and makes every error fit to be sent:
 * with an ErrorInfo, without the text of what nobody meant to throw.
 */
export function observe(log: Logger, metrics: RpcMetrics): Interceptor {
  return (next) => async (request) => {
    const started = performance.now();
    const requestId = requestIdOf(request.header);
    const method = `${request.service.typeName}/${request.method.name}`;
    const finish = (error?: unknown): ConnectError | undefined => {
      const elapsed = performance.now() - started;
      const refused = error === undefined ? undefined : presentable(error, log, method, requestId);
      const code = refused === undefined ? "ok" : Code[refused.code].toLowerCase();
      metrics.observe(method, code, elapsed / 1000);
      const call = request.contextValues.get(callKey);
      const line = {
        method,
        request_id: requestId,
        code,
        ms: Math.round(elapsed * 100) / 100,
        caller: call?.caller.kind,
        caller_id: call?.caller.id,
        org_id: call?.orgId,
        reason: refused === undefined ? undefined : errorReason(refused),
      };
      if (refused?.code === Code.Internal) log.error(line, "call failed");
      else log.debug(line, "call");
      refused?.metadata.set(requestIdHeader, requestId);
      return refused;
    };
    let response: UnaryResponse | StreamResponse;
    try {
      response = await next(request);
    } catch (error) {
      throw finish(error);
    }
    response.header.set(requestIdHeader, requestId);
    if (!response.stream) {
      finish();
      return response;
    }
    return { ...response, message: observed(response.message, finish) };
  };
}

async function* observed<T>(messages: AsyncIterable<T>, finish: (error?: unknown) => unknown): AsyncIterable<T> {
  let ended = false;
  try {
    yield* messages;
    ended = true;
    finish();
  } catch (error) {
    ended = true;
    throw finish(error);
  } finally {
    if (!ended) finish(fail(Reason.CANCELLED, "the caller ended the stream"));
  }
}

/** Turns whatever was thrown into an error that may be sent. */
export function presentable(thrown: unknown, log: Logger, method: string, requestId: string): ConnectError {
  const error = mapDatabaseError(thrown);
  if (error instanceof ConnectError) {
    const downstream = downstreamOf(error);
    if (downstream !== undefined && !downstream.delegated) {
      if (error.code === Code.Unavailable || error.code === Code.DeadlineExceeded || error.code === Code.Canceled) {
        return fail(
          Reason.DEPENDENCY_UNAVAILABLE,
          `${downstream.service} cannot be reached`,
          { service: downstream.service },
          { retryAfterMs: 1000, cause: error },
        );
      }
      log.error({ method, request_id: requestId, err: error }, "a sibling refused a call");
      return fail(Reason.INTERNAL, "internal error", {}, { cause: error });
    }
    if (reasonOf(error) === undefined) addReason(error);
    if (error.code !== Code.Internal || reasonOf(error) === Reason.INTERNAL) return error;
  }
  if (error instanceof Error && error.name === "AbortError") {
    return fail(Reason.CANCELLED, "the call was cancelled", {}, { cause: error });
  }
  log.error({ method, request_id: requestId, err: error }, "unexpected error");
  return fail(Reason.INTERNAL, "internal error", {}, { cause: error });
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

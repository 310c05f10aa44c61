import { randomBytes } from "node:crypto";
import { type DescMethod, getOption, hasOption } from "@bufbuild/protobuf";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { AuditExemption, method as methodOption } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import {
  type Attributes,
  type Context,
  context,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  type TextMapPropagator,
  TraceFlags,
  type Tracer,
  trace,
} from "@opentelemetry/api";
import {
  ATTR_ERROR_TYPE,
  ATTR_HTTP_REQUEST_METHOD,
  ATTR_HTTP_ROUTE,
  ATTR_RPC_METHOD,
  ATTR_RPC_STATUS_CODE,
  ATTR_RPC_SYSTEM_NAME,
  ATTR_SERVER_ADDRESS,
  RPC_SYSTEM_NAME_VALUE_GRPC,
} from "@opentelemetry/semantic-conventions";
import type { Logger } from "pino";
import type { CallerKind } from "./caller.ts";
import type { Connection } from "./connection.ts";
import { nameOfReason, reasonOf } from "./errors.ts";
import type { ServiceName } from "./service-name.ts";

/** The samplers that `OTEL_TRACES_SAMPLER` may name, as OpenTelemetry's specification defines them. */
export const samplerNames = [
  "always_on",
  "always_off",
  "traceidratio",
  "parentbased_always_on",
  "parentbased_always_off",
  "parentbased_traceidratio",
] as const;

/** Where traces go, and how many of them. */
export interface TracingConfig {
  /** The collector's full URL for traces; OTLP over HTTP, JSON. */
  readonly url: string;
  readonly sampler: (typeof samplerNames)[number];
  /** Share of traces that the ratio samplers keep, 0 to 1. */
  readonly ratio: number;
}

/** How a call ended, as its span says it. */
export interface CallOutcome {
  /** Undefined for a call that succeeded. */
  readonly code: Code | undefined;
  /** The reason of a refusal, such as `SCOPE_MISSING`. */
  readonly reason?: string;
  /** What kind of caller it was, where it was admitted. */
  readonly caller?: CallerKind;
}

/** The span of one call that this service answers. */
export interface ServerSpan {
  /** 32 hexadecimal digits; undefined while traces are off. */
  readonly traceId: string | undefined;
  /** Does work inside the span: calls to siblings become its children. */
  run<T>(work: () => T): T;
  /** A stream each step of which is done inside the span. */
  bind<T>(messages: AsyncIterable<T>): AsyncIterable<T>;
  /** Ends the span. Once; later ends are ignored. */
  end(outcome: CallOutcome): void;
}

/** A call as it arrives. */
export interface IncomingCall {
  readonly method: DescMethod;
  readonly header: Headers;
  readonly connection: Connection | undefined;
  /** Verb and path template of HTTP that is no rpc. */
  readonly http?: { readonly verb: string; readonly route: string };
}

/** The traces of one service. */
export interface Telemetry {
  /** Begins the span of a call. */
  serverSpan(call: IncomingCall): ServerSpan;
  /** The interceptor that makes the spans of calls to a sibling, and tells it the trace; undefined while traces are off. */
  clientSpans(sibling: ServiceName): Interceptor | undefined;
  /** Sends what is still here, for at most the time given to `openTelemetry`. Never throws. */
  close(): Promise<void>;
}

/** What the traces of a service need. */
export interface TelemetryOptions {
  readonly service: ServiceName;
  /** Undefined: traces are off. */
  readonly tracing: TracingConfig | undefined;
  readonly log: Logger;
  /** How long `close` may wait for the collector. Default 3 s. */
  readonly closeTimeoutMs?: number;
}

const noSpan: ServerSpan = {
  traceId: undefined,
  run: (work) => work(),
  bind: (messages) => messages,
  end: () => undefined,
};

/** Traces that are off: nothing is made, propagated or sent. */
export const noTelemetry: Telemetry = {
  serverSpan: () => noSpan,
  clientSpans: () => undefined,
  close: async () => undefined,
};

/**
 * Opens the traces of a service. While they are off not even OpenTelemetry's SDK is loaded. Each service has a provider of
 * its own, none is global, so that six services in one process keep their names apart (`service.name` is
 * `octomesh-<service>`); only the context manager belongs to the process.
 *
 * Whose word counts for a trace: a peer's, whose certificate was checked, becomes the parent, and its sampling decision
 * holds. Anybody else's `traceparent` becomes a link and no more: a stranger can neither have a call sampled, nor keep it
 * from being sampled, nor put it into another trace; `tracestate` and `baggage` are dropped.
 *
 * A service's own work begins traces too, but for what the contract calls book-keeping between services: that is traced
 * where it belongs to a call, or where the sampler asks no parent.
 *
 * Spans say which method, how it ended, why, and what kind of caller it was. They hold no identifier, no address, no
 * header and no message: who it was is in the log, by `trace_id`.
 */
export async function openTelemetry(options: TelemetryOptions): Promise<Telemetry> {
  const { service, tracing, log, closeTimeoutMs = 3000 } = options;
  if (tracing === undefined) return noTelemetry;
  const { openTracerProvider } = await import("./tracer-provider.ts");
  const { tracer, propagator, shutdown } = openTracerProvider(service, tracing, log);
  return {
    serverSpan: (call) => startServerSpan(tracer, propagator, call),
    clientSpans: (sibling) => clientSpans(tracer, propagator, sibling),
    async close() {
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<"late">((resolve) => {
        timer = setTimeout(() => resolve("late"), closeTimeoutMs);
      });
      // What could not be delivered is logged by the provider.
      const done = await Promise.race([shutdown().catch(() => undefined), late]);
      clearTimeout(timer);
      if (done === "late") log.warn({ waited_ms: closeTimeoutMs }, "the last traces were given up");
    },
  };
}

function startServerSpan(tracer: Tracer, propagator: TextMapPropagator, call: IncomingCall): ServerSpan {
  const { method, header, connection, http } = call;
  const told = propagator.extract(ROOT_CONTEXT, header, headerGetter);
  const remote = trace.getSpanContext(told);
  const isTrusted = connection?.peer !== undefined;
  const system = systemOf(header);
  const parent = isTrusted ? told : ROOT_CONTEXT;
  const span = tracer.startSpan(
    nameOf(method),
    {
      kind: SpanKind.SERVER,
      attributes: {
        [ATTR_RPC_METHOD]: nameOf(method),
        ...(http === undefined
          ? { [ATTR_RPC_SYSTEM_NAME]: system }
          : { [ATTR_HTTP_REQUEST_METHOD]: http.verb, [ATTR_HTTP_ROUTE]: http.route }),
      },
      links:
        isTrusted || remote === undefined
          ? []
          : [{ context: { traceId: remote.traceId, spanId: remote.spanId, traceFlags: remote.traceFlags } }],
    },
    parent,
  );
  const inside = trace.setSpan(parent, span);
  const run = <T>(work: () => T): T => context.with(inside, work);
  let ended = false;
  return {
    traceId: span.spanContext().traceId,
    run,
    bind: (messages) => bindMessages(messages, run),
    end({ code, reason, caller }) {
      if (ended) return;
      ended = true;
      const isFault = code !== undefined && codesOfServerFaults.has(code);
      span.setAttributes({
        ...outcomeAttributes(system, code, reason, isFault),
        ...(caller === undefined ? {} : { "octomesh.caller.kind": caller }),
      });
      if (isFault) span.setStatus({ code: SpanStatusCode.ERROR });
      span.end();
    },
  };
}

/** A stream whose every step is done by `run`: a generator goes on in the context of whoever asks it for more. */
function bindMessages<T>(messages: AsyncIterable<T>, run: <R>(work: () => R) => R): AsyncIterable<T> {
  return {
    [Symbol.asyncIterator]() {
      const iterator = run(() => messages[Symbol.asyncIterator]());
      return {
        next: () => run(() => iterator.next()),
        return: (value?: unknown) =>
          run(() => iterator.return?.(value) ?? Promise.resolve({ done: true as const, value })),
        throw: (error?: unknown) => run(() => iterator.throw?.(error) ?? Promise.reject(error)),
      };
    },
  };
}

function clientSpans(tracer: Tracer, propagator: TextMapPropagator, sibling: ServiceName): Interceptor {
  return (next) => async (request) => {
    const active = context.active();
    const parent =
      trace.getSpan(active) === undefined && isBookKeeping(request.method) ? outsideTraces(active) : active;
    const span = tracer.startSpan(
      nameOf(request.method),
      {
        kind: SpanKind.CLIENT,
        attributes: {
          [ATTR_RPC_SYSTEM_NAME]: RPC_SYSTEM_NAME_VALUE_GRPC,
          [ATTR_RPC_METHOD]: nameOf(request.method),
          [ATTR_SERVER_ADDRESS]: sibling,
        },
      },
      parent,
    );
    propagator.inject(trace.setSpan(parent, span), request.header, headerSetter);
    const end = once((error?: unknown) => endClientSpan(span, error));
    try {
      const response = await next(request);
      if (!response.stream) {
        end();
        return response;
      }
      // Where this service goes away nobody may read the stream to its end.
      const onGone = (): void => end(new ConnectError("cancelled", Code.Canceled));
      request.signal.addEventListener("abort", onGone, { once: true });
      const message = endWithStream(response.message, (error) => {
        request.signal.removeEventListener("abort", onGone);
        end(error);
      });
      return { ...response, message };
    } catch (error) {
      end(error);
      throw error;
    }
  };
}

/** Whether the contract calls a method book-keeping between services, which acts for nobody. */
function isBookKeeping(method: DescMethod): boolean {
  return hasOption(method, methodOption) && getOption(method, methodOption).auditExemption === AuditExemption.MESH;
}

/** A parent that was not sampled: services beat every second, and would fill a collector with traces of nothing. */
function outsideTraces(of: Context): Context {
  const traceId = randomBytes(16).toString("hex");
  const spanId = randomBytes(8).toString("hex");
  return trace.setSpanContext(of, { traceId, spanId, traceFlags: TraceFlags.NONE });
}

function endClientSpan(span: Span, error: unknown): void {
  const failure = error === undefined ? undefined : ConnectError.from(error);
  const reason = reasonOf(failure);
  span.setAttributes(
    outcomeAttributes(
      RPC_SYSTEM_NAME_VALUE_GRPC,
      failure?.code,
      reason === undefined ? undefined : nameOfReason(reason),
      failure !== undefined,
    ),
  );
  if (failure !== undefined) span.setStatus({ code: SpanStatusCode.ERROR });
  span.end();
}

async function* endWithStream<T>(messages: AsyncIterable<T>, end: (error?: unknown) => void): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (error) {
    end(error);
    throw error;
  } finally {
    end();
  }
}

function once(work: (error?: unknown) => void): (error?: unknown) => void {
  let isDone = false;
  return (error) => {
    if (isDone) return;
    isDone = true;
    work(error);
  };
}

/** Codes that are the service's fault and not the caller's (semantic conventions for RPC, server spans). */
const codesOfServerFaults: ReadonlySet<Code> = new Set([
  Code.Unknown,
  Code.DeadlineExceeded,
  Code.Unimplemented,
  Code.Internal,
  Code.Unavailable,
  Code.DataLoss,
]);

function outcomeAttributes(
  system: string,
  code: Code | undefined,
  reason: string | undefined,
  isFault: boolean,
): Attributes {
  const status = statusOf(system, code);
  return {
    ...(status === undefined ? {} : { [ATTR_RPC_STATUS_CODE]: status }),
    ...(isFault && status !== undefined ? { [ATTR_ERROR_TYPE]: status } : {}),
    ...(reason === undefined ? {} : { "octomesh.reason": reason }),
  };
}

const connectSystem = "connectrpc";

/** gRPC writes its codes in capitals, OK among them; Connect in small letters, and has none for success. */
function statusOf(system: string, code: Code | undefined): string | undefined {
  if (code === undefined) return system === connectSystem ? undefined : "OK";
  const name = Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toLowerCase();
  if (system === connectSystem) return name;
  return code === Code.Canceled ? "CANCELLED" : name.toUpperCase();
}

/** gRPC and gRPC-Web say so in their content type; everything else, REST among it, is served as Connect. */
function systemOf(header: Headers): string {
  return header.get("content-type")?.startsWith("application/grpc") === true
    ? RPC_SYSTEM_NAME_VALUE_GRPC
    : connectSystem;
}

function nameOf(method: DescMethod): string {
  return `${method.parent.typeName}/${method.name}`;
}

const headerGetter = {
  get: (header: Headers, name: string): string | undefined => header.get(name) ?? undefined,
  keys: (header: Headers): string[] => [...header.keys()],
};

const headerSetter = {
  set: (header: Headers, name: string, value: string): void => header.set(name, value),
};

import { setTimeout as sleep } from "node:timers/promises";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import {
  type CallOptions,
  type Client,
  Code,
  ConnectError,
  createClient,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import type { Call } from "./call.ts";
import { delegateHeader, formatDelegation } from "./delegation.ts";
import { markDownstream } from "./downstream.ts";
import { requestIdHeader } from "./observe.ts";
import type { ServiceName } from "./service-name.ts";
import { noTelemetry, type Telemetry } from "./telemetry.ts";
import { clientTlsOptions, type MeshIdentity, spiffeIdOf } from "./tls.ts";

/** Clients of the other services of the mesh. */
export interface SiblingClients {
  /** A client of an rpc service at one sibling. */
  client<S extends DescService>(sibling: ServiceName, service: S): Client<S>;
  /** Ends idle connections. */
  close(): void;
}

/** What the clients need. */
export interface SiblingClientsOptions {
  readonly identity: MeshIdentity;
  readonly trustDomain: string;
  /** Base URL of a sibling's mesh port, `https://host:port`. Asked at each connection, so that it may become known late. */
  urlOf(sibling: ServiceName): string;
  /** Traces of the calls; none if not given. */
  readonly telemetry?: Telemetry;
}

/** How long a unary call to a sibling may take unless the caller says otherwise. */
const defaultTimeoutMs = 10_000;
const maxAttempts = 3;
const maxMessageBytes = 16 * 1024 * 1024;

/**
 * Clients that speak gRPC over mutual TLS to the expected SPIFFE ID. Unary calls have a deadline of 10 s by default;
 * calls whose contract says they are safe to repeat are tried up to three times where the sibling is unavailable.
 */
export function createSiblingClients(options: SiblingClientsOptions): SiblingClients {
  const transports = new Map<
    ServiceName,
    { transport: Transport; sessions: Http2SessionManager; baseUrl: string; generation: number }
  >();
  /** Connections with an older certificate, which live until their last call has ended. */
  let retired: Http2SessionManager[] = [];
  let generation = 0;
  const stopWatching = options.identity.onChange(() => {
    generation += 1;
  });

  const transportOf = (sibling: ServiceName): Transport => {
    const known = transports.get(sibling);
    const baseUrl = options.urlOf(sibling);
    if (known !== undefined && known.generation === generation && known.baseUrl === baseUrl) return known.transport;
    // Without TLS nothing would prove who answers, and credentials would travel in the open.
    if (!baseUrl.startsWith("https://")) throw new Error(`the URL of ${sibling} must begin with https://`);
    const sessions = new Http2SessionManager(
      baseUrl,
      { pingIntervalMs: 20_000, pingTimeoutMs: 5_000, pingIdleConnection: true, idleConnectionTimeoutMs: 120_000 },
      clientTlsOptions(options.identity, spiffeIdOf(options.trustDomain, sibling)),
    );
    const spans = (options.telemetry ?? noTelemetry).clientSpans(sibling);
    const transport = createGrpcTransport({
      baseUrl,
      sessionManager: sessions,
      readMaxBytes: maxMessageBytes,
      writeMaxBytes: maxMessageBytes,
      // One span for a call, however often it is tried.
      interceptors: [...(spans === undefined ? [] : [spans]), retry, mark(sibling)],
    });
    // Calls under way on the old connections end there; with the last one the session idles out.
    retired = retired.filter((each) => each.state() !== "closed");
    if (known !== undefined) retired.push(known.sessions);
    transports.set(sibling, { transport, sessions, baseUrl, generation });
    return transport;
  };

  return {
    client<S extends DescService>(sibling: ServiceName, service: S): Client<S> {
      const late: Transport = {
        unary: (method, signal, timeoutMs, header, input, contextValues) =>
          transportOf(sibling).unary(method, signal, timeoutMs ?? defaultTimeoutMs, header, input, contextValues),
        stream: (method, signal, timeoutMs, header, input, contextValues) =>
          transportOf(sibling).stream(method, signal, timeoutMs, header, input, contextValues),
      };
      return createClient(service, late);
    },
    close() {
      stopWatching();
      for (const { sessions } of transports.values()) end(sessions);
      for (const sessions of retired.splice(0)) end(sessions);
      transports.clear();
    },
  };
}

/**
 * Breaks off calls under way. A connection without any does not keep the process alive and is left to its own end: to
 * abort one that the sibling's GOAWAY has just destroyed would take away the listener of the error that follows.
 */
function end(sessions: Http2SessionManager): void {
  if (sessions.state() !== "idle") sessions.abort();
}

/** Call options by which this service acts for a call's organisation (DESIGN 8.1). */
export function delegatedOptions(call: Call): CallOptions {
  return {
    signal: call.signal,
    headers: { [delegateHeader]: formatDelegation(call), [requestIdHeader]: call.requestId },
  };
}

function mark(sibling: ServiceName): Interceptor {
  return (next) => async (request) => {
    const delegated = request.header.has(delegateHeader);
    const marked = (error: unknown): ConnectError => {
      const connectError = ConnectError.from(error);
      // What carried the sibling's answer (content-type, grpc-status …) is not for the headers of ours.
      for (const name of [...connectError.metadata.keys()]) {
        if (name !== "retry-after") connectError.metadata.delete(name);
      }
      markDownstream(connectError, { service: sibling, delegated });
      return connectError;
    };
    try {
      const response = await next(request);
      return response.stream ? { ...response, message: mapErrors(response.message, marked) } : response;
    } catch (error) {
      throw marked(error);
    }
  };
}

async function* mapErrors<T>(messages: AsyncIterable<T>, map: (error: unknown) => unknown): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (error) {
    throw map(error);
  }
}

/** Repeats unary calls that the contract calls safe while the sibling is unavailable, with growing pauses. */
const retry: Interceptor = (next) => async (request) => {
  if (request.stream || !isSafeToRepeat(request.method)) return next(request);
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await next(request);
    } catch (error) {
      const code = ConnectError.from(error).code;
      if (attempt >= maxAttempts || code !== Code.Unavailable || request.signal.aborted) throw error;
      const pauseMs = 50 * 2 ** attempt * (0.5 + Math.random() / 2);
      // A caller that gives up meanwhile is told what was wrong.
      await sleep(pauseMs, undefined, { signal: request.signal }).catch(() => Promise.reject(error));
    }
  }
};

function isSafeToRepeat(method: DescMethod): boolean {
  return method.idempotency === Idempotency.NO_SIDE_EFFECTS || method.idempotency === Idempotency.IDEMPOTENT;
}

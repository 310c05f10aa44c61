import type { DescMethod } from "@bufbuild/protobuf";
import type { Interceptor, StreamRequest, StreamResponse } from "@connectrpc/connect";
import type { Logger } from "pino";
import { type Admission, type AdmissionDeps, admit, admitFields } from "./admit.ts";
import type { Call } from "./call.ts";
import { callKey } from "./call-context.ts";
import { connectionKey } from "./connection.ts";
import { isGuarded } from "./credentials.ts";
import { fail, Reason } from "./errors.ts";
import { requestIdHeader } from "./observe.ts";
import type { Policy } from "./policy.ts";
import { writeLimitHeaders } from "./ratelimit-headers.ts";

/**
 * The interceptor that makes the contract's policy true. A method that it does not know is refused. A method whose
 * audited change was committed without its record is an error, since it must not exist. A stream ends with the
 * credential that opened it, and when the service stops.
 */
export function enforcePolicy(policies: ReadonlyMap<DescMethod, Policy>, deps: AdmissionDeps): Interceptor {
  return (next) => async (request) => {
    const { method, contextValues } = request;
    const policy = policies.get(method);
    const connection = contextValues.get(connectionKey);
    if (policy === undefined || connection === undefined) {
      throw fail(Reason.CALLER_KIND_NOT_ALLOWED, "the method has no policy", {});
    }
    if (connection.listener === "public" && !policy.isPublic) {
      throw fail(Reason.METHOD_NOT_FOUND, "there is no such method here", {});
    }
    const requestId = request.header.get(requestIdHeader) ?? "";
    const enter = async (signal: AbortSignal): Promise<Admission> => {
      const admission = await admit({ method, policy, connection, header: request.header, requestId, signal }, deps);
      contextValues.set(callKey, admission.call);
      if (policy.httpOnly)
        throw fail(Reason.NOT_IMPLEMENTED, "the method is served as plain HTTP at its REST path", {});
      return admission;
    };
    if (!request.stream) {
      const { call, limit } = await enter(request.signal);
      admitFields(request.message as unknown as Record<string, unknown>, call, policy, method, deps);
      const response = await next(request);
      demandAudit(call, method, deps.log);
      writeLimitHeaders(response.header, limit);
      return response;
    }
    const life = openStreamLife(request.signal);
    try {
      const { call, limit } = await enter(life.signal);
      if (deps.draining !== undefined) life.endWith(deps.draining, serviceStops);
      if (isGuarded(call.caller.kind)) {
        const guard = deps.credentials.guard(call.caller);
        life.onOver(guard.release);
        life.endWith(guard.signal, () => guard.signal.reason);
      }
      const message = checkEach(request.message, call, policy, method, deps);
      const checked: StreamRequest = { ...request, signal: life.signal, message };
      const response = await next(checked);
      writeLimitHeaders(response.header, limit);
      if (!response.stream) {
        life.over();
        return response;
      }
      return { ...response, message: endOnAbort(response.message, life.signal, life.over) } satisfies StreamResponse;
    } catch (error) {
      life.over();
      throw error;
    }
  };
}

function serviceStops(): Error {
  return fail(Reason.SERVICE_UNAVAILABLE, "the service is stopping", {}, { retryAfterMs: 1000 });
}

/** How long a stream lives: until its caller goes away, or one of the signals says that it must end. */
interface StreamLife {
  readonly signal: AbortSignal;
  endWith(signal: AbortSignal, reason: () => unknown): void;
  onOver(callback: () => void): void;
  /** Lets go of everything that was listened to. */
  over(): void;
}

/** Listeners are taken off long-lived signals when the stream is over, also where nobody reads it to its end. */
function openStreamLife(requestSignal: AbortSignal): StreamLife {
  const controller = new AbortController();
  const callbacks: (() => void)[] = [];
  const over = (): void => {
    for (const callback of callbacks.splice(0)) callback();
  };
  const life: StreamLife = {
    signal: controller.signal,
    endWith(signal, reason) {
      const end = (): void => controller.abort(reason());
      if (signal.aborted) return end();
      signal.addEventListener("abort", end, { once: true });
      callbacks.push(() => signal.removeEventListener("abort", end));
    },
    onOver: (callback) => void callbacks.push(callback),
    over,
  };
  // The request's signal aborts when the caller goes away, and at the latest when the call has ended.
  life.endWith(requestSignal, () => requestSignal.reason);
  controller.signal.addEventListener("abort", over, { once: true });
  return life;
}

async function* checkEach<T>(
  messages: AsyncIterable<T>,
  call: Call,
  policy: Policy,
  method: DescMethod,
  deps: AdmissionDeps,
): AsyncIterable<T> {
  for await (const message of messages) {
    admitFields(message as Record<string, unknown>, call, policy, method, deps);
    yield message;
  }
}

/** Ends a stream with the signal's reason as soon as it aborts, even while the handler waits. */
async function* endOnAbort<T>(messages: AsyncIterable<T>, signal: AbortSignal, over: () => void): AsyncIterable<T> {
  const iterator = messages[Symbol.asyncIterator]();
  try {
    for (;;) {
      const result = await unlessAborted(iterator.next(), signal);
      if (result.done === true) return;
      yield result.value;
    }
  } finally {
    over();
    iterator.return?.()?.then(undefined, () => undefined);
  }
}

/** Not Promise.race: against a promise that outlives each message it would keep a little of every one of them. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason);
    const settled = (): void => signal.removeEventListener("abort", onAbort);
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(settled);
    if (signal.aborted) onAbort();
  });
}

/** An audited change that left no record is a fault of the handler: it is answered as one, and logged as one. */
export function demandAudit(call: Call, method: DescMethod, log: Logger): void {
  if (call.audit?.state !== "pending") return;
  log.error(
    { method: `${method.parent.typeName}/${method.name}` },
    "an audited method committed nothing to the audit log",
  );
  throw fail(Reason.INTERNAL, "internal error", {});
}

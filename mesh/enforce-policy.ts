import type { DescMethod } from "@bufbuild/protobuf";
import type { Interceptor, StreamRequest, StreamResponse } from "@connectrpc/connect";
import type { Logger } from "pino";
import { type AdmissionDeps, admit, checkFields } from "./admit.ts";
import type { Call } from "./call.ts";
import { callKey } from "./call-context.ts";
import { callerKey } from "./caller.ts";
import { connectionKey } from "./connection.ts";
import { isGuarded } from "./credentials.ts";
import { fail, Reason } from "./errors.ts";
import { requestIdHeader } from "./observe.ts";
import type { Policy } from "./policy.ts";
import { writeLimitHeaders } from "./ratelimit-headers.ts";

/**
 * The interceptor that makes the contract's policy true. A method that it does not know is refused. A method whose
 * audited change was committed without its record is an error, since it must not exist.
 */
export function enforcePolicy(policies: ReadonlyMap<DescMethod, Policy>, deps: AdmissionDeps): Interceptor {
  return (next) => async (request) => {
    const policy = policies.get(request.method);
    const connection = request.contextValues.get(connectionKey);
    if (policy === undefined || connection === undefined) {
      throw fail(Reason.CALLER_KIND_NOT_ALLOWED, "the method has no policy", {});
    }
    if (connection.listener === "public" && !policy.isPublic) {
      throw fail(Reason.METHOD_NOT_FOUND, "there is no such method here", {});
    }
    const guarded = new AbortController();
    const signal = AbortSignal.any([request.signal, guarded.signal]);
    const { call, limit } = await admit(
      {
        method: request.method,
        policy,
        connection,
        header: request.header,
        requestId: request.header.get(requestIdHeader) ?? "",
        signal,
      },
      deps,
    );
    request.contextValues.set(callerKey, call.caller).set(callKey, call);
    if (policy.httpOnly) throw fail(Reason.NOT_IMPLEMENTED, "the method is served as plain HTTP at its REST path", {});
    if (!request.stream) {
      checkFields(request.message as unknown as Record<string, unknown>, call.caller, policy);
      const response = await next(request);
      demandAudit(call, request.method, deps.log);
      writeLimitHeaders(response.header, limit);
      return response;
    }
    const checked: StreamRequest = { ...request, message: checkEach(request.message, call, policy) };
    const response = await next(checked);
    writeLimitHeaders(response.header, limit);
    if (!response.stream || !isGuarded(call.caller.kind)) return response;
    const guard = deps.credentials.guard(call.caller);
    guard.signal.addEventListener("abort", () => guarded.abort(guard.signal.reason), { once: true });
    const message = endOnAbort(response.message, guard.signal, guard.release);
    return { ...response, message } satisfies StreamResponse;
  };
}

async function* checkEach<T>(messages: AsyncIterable<T>, call: Call, policy: Policy): AsyncIterable<T> {
  for await (const message of messages) {
    checkFields(message as Record<string, unknown>, call.caller, policy);
    yield message;
  }
}

/** Ends a stream with the signal's reason as soon as it aborts, even while the handler waits. */
async function* endOnAbort<T>(messages: AsyncIterable<T>, signal: AbortSignal, release: () => void): AsyncIterable<T> {
  const iterator = messages[Symbol.asyncIterator]();
  let stop: (reason: unknown) => void = () => undefined;
  const aborted = new Promise<never>((_, reject) => {
    stop = reject;
  });
  aborted.catch(() => undefined);
  const onAbort = (): void => stop(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  if (signal.aborted) onAbort();
  try {
    for (;;) {
      const result = await Promise.race([iterator.next(), aborted]);
      if (result.done === true) return;
      yield result.value;
    }
  } finally {
    signal.removeEventListener("abort", onAbort);
    release();
    iterator.return?.()?.then(undefined, () => undefined);
  }
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

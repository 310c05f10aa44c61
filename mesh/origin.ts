import { fail, Reason } from "./errors.ts";
import { type HttpHandler, respond } from "./http-handler.ts";
import { problemOf } from "./problem.ts";
import type { HttpRequest, HttpResponse } from "./service.ts";

const plain = { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store" };

/**
 * One origin out of several handlers: the first that knows a request answers it. `/healthz` says whether all are ready;
 * what nobody knows is answered 404 in the form that its caller reads.
 */
export function createOrigin(
  handlers: readonly HttpHandler[],
  isReady: () => Promise<boolean>,
): (request: HttpRequest, response: HttpResponse) => void {
  return (request, response) => {
    const path = (request.url ?? "").split("?")[0] ?? "";
    if (path === "/healthz" && (request.method === "GET" || request.method === "HEAD")) {
      isReady().then(
        (ready) => respond(response, ready ? 200 : 503, plain, ready ? "ok\n" : "not ready\n"),
        () => respond(response, 503, plain, "not ready\n"),
      );
      return;
    }
    for (const handler of handlers) if (handler(request, response)) return;
    answerUnknown(request, response);
  };
}

/** 404, and for gRPC its own status, since its callers read no other. */
export function answerUnknown(request: HttpRequest, response: HttpResponse): void {
  const type = request.headers["content-type"] ?? "";
  if (type.startsWith("application/grpc")) {
    const headers = { "content-type": type, "grpc-status": "12", "grpc-message": "there is no such method here" };
    respond(response, 200, headers, "");
    return;
  }
  const problem = problemOf(fail(Reason.METHOD_NOT_FOUND, "there is nothing at this path", {}), "");
  respond(response, problem.status, problem.headers, JSON.stringify(problem.body));
}

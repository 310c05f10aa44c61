import type { HttpRequest, HttpResponse } from "./service.ts";

/** Cross-origin access for browsers, by allow-list. */
export interface Cors {
  /** Writes the CORS fields of an answer; true if the request was a preflight, which is then answered. */
  answer(request: HttpRequest, response: HttpResponse, verbs: readonly string[]): boolean;
}

const allowedHeaders = [
  "authorization",
  "content-type",
  "connect-protocol-version",
  "connect-timeout-ms",
  "grpc-timeout",
  "if-match",
  "if-none-match",
  "if-range",
  "octomesh-download-grant",
  "range",
  "upload-offset",
  "x-api-key",
  "x-grpc-web",
  "x-request-id",
  "x-user-agent",
].join(", ");

const exposedHeaders = [
  "content-range",
  "etag",
  "grpc-message",
  "grpc-status",
  "grpc-status-details-bin",
  "octomesh-replayed",
  "ratelimit",
  "ratelimit-policy",
  "retry-after",
  "upload-offset",
  "x-request-id",
].join(", ");

/**
 * Allows the listed origins, compared whole: nobody if the list is empty. `*` is not taken, since credentials travel in
 * headers that a page may set. Cookies are never allowed across origins.
 */
export function createCors(origins: readonly string[]): Cors {
  const allowed = new Set(origins);
  return {
    answer(request, response, verbs) {
      const { origin } = request.headers;
      const isAllowed = typeof origin === "string" && allowed.has(origin);
      if (isAllowed) {
        response.setHeader("access-control-allow-origin", origin);
        response.setHeader("access-control-expose-headers", exposedHeaders);
      }
      response.setHeader("vary", "origin");
      if (request.method !== "OPTIONS") return false;
      if (isAllowed) {
        response.setHeader("access-control-allow-methods", [...verbs, "OPTIONS"].join(", "));
        response.setHeader("access-control-allow-headers", allowedHeaders);
        response.setHeader("access-control-max-age", "7200");
      }
      response.setHeader("allow", [...verbs, "OPTIONS"].join(", "));
      response.statusCode = 204;
      response.end();
      return true;
    },
  };
}

import type { ServerResponse } from "node:http";
import { createConnectRouter } from "@connectrpc/connect";
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from "@connectrpc/connect-node";
import type { Registry } from "prom-client";
import { type HealthState, healthRoutes } from "./health.ts";
import { respond } from "./http-handler.ts";
import type { HttpRequest, HttpResponse } from "./service.ts";

const plain = { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store" };

/**
 * Serves the admin port: `/healthz` (the process lives), `/readyz` (it can answer, or 503 and why not), `/metrics`
 * (Prometheus), and grpc.health.v1. For the cluster's own network; it says nothing of any organisation.
 */
export function createAdminHandler(
  health: HealthState,
  metrics: Registry,
  serviceTypeNames: readonly string[],
): (request: HttpRequest, response: HttpResponse) => void {
  const router = createConnectRouter({ readMaxBytes: 64 * 1024, maxTimeoutMs: 3_600_000 });
  healthRoutes(router, health, serviceTypeNames);
  const rpcs = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));

  const answer = async (request: HttpRequest, response: HttpResponse): Promise<void> => {
    const path = (request.url ?? "").split("?")[0] ?? "";
    const rpc = rpcs.get(path);
    if (rpc !== undefined) {
      const universal = universalRequestFromNodeRequest(request, response as ServerResponse, undefined, undefined);
      await universalResponseToNodeResponse(await rpc(universal), response as ServerResponse);
      return;
    }
    if (request.method !== "GET" && request.method !== "HEAD") return respond(response, 405, plain, "");
    if (path === "/healthz") return respond(response, 200, plain, "ok\n");
    if (path === "/readyz") {
      const problems = Object.entries(await health.problems());
      if (problems.length === 0) return respond(response, 200, plain, "ready\n");
      return respond(response, 503, plain, problems.map(([part, problem]) => `${part}: ${problem}\n`).join(""));
    }
    if (path === "/metrics") {
      return respond(response, 200, { ...plain, "content-type": metrics.contentType }, await metrics.metrics());
    }
    respond(response, 404, plain, "there is nothing here\n");
  };

  return (request, response) => {
    answer(request, response).catch(() => respond(response, 400, plain, "the request cannot be understood\n"));
  };
}

import { fail, Reason } from "@octomesh/mesh/errors";
import { respond } from "@octomesh/mesh/http-handler";
import type { HttpRoute } from "@octomesh/mesh/service";
import { VerdictService } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { type ReadingDeps, readVerdict, retryAfterMsOf } from "./read-verdict.ts";
import { verdictJson } from "./verdict-json.ts";

const maxWaitMs = 10_000;

/**
 * `GET /v1/verdict/{ref}?waitMs=…` in the shape of Octet's interface: the verdict, or 404 with
 * `{"status":"pending","ref":…,"reason":…}` and Retry-After. `wait_ms` is taken for `waitMs`.
 */
export function verdictRoute(deps: ReadingDeps): HttpRoute {
  return {
    method: VerdictService.method.getVerdict,
    async handle(call, request, response, params) {
      const ref = params.session_ref ?? "";
      const waitMs = waitMsOf(request.url ?? "");
      const reading = await readVerdict(deps, call, ref, waitMs);
      const headers: Record<string, string> = { "content-type": "application/json" };
      const isReady = reading.state === "ready";
      if (!isReady) headers["retry-after"] = String(retryAfterMsOf(reading.state) / 1000);
      const answer = isReady ? verdictJson(reading.verdict) : { status: "pending", ref, reason: reading.state };
      const body = JSON.stringify(answer);
      if (request.method === "HEAD") headers["content-length"] = String(Buffer.byteLength(body));
      respond(response, isReady ? 200 : 404, headers, request.method === "HEAD" ? "" : body);
    },
  };
}

function waitMsOf(target: string): number {
  const at = target.indexOf("?");
  const query = new URLSearchParams(at < 0 ? "" : target.slice(at + 1));
  let waitMs = 0;
  for (const [name, value] of query) {
    if (name !== "waitMs" && name !== "wait_ms") {
      throw fail(Reason.REQUEST_MALFORMED, "the only parameter is waitMs");
    }
    waitMs = /^\d{1,5}$/.test(value) ? Number(value) : Number.NaN;
    if (!(waitMs <= maxWaitMs)) {
      const max = String(maxWaitMs);
      throw fail(Reason.VALIDATION_FAILED, `waitMs: a whole number from 0 to ${max} is expected`, { field: "wait_ms" });
    }
  }
  return waitMs;
}

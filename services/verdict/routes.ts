import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ConnectRouter, ServiceImpl } from "@connectrpc/connect";
import type { Call } from "@octomesh/mesh/call";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import {
  type CreateVerdictSessionRequest,
  VerdictService,
} from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { VerdictSession_State as State } from "@octomesh/proto/octomesh/verdict/v1/verdict_session_pb";
import { pendingError, type ReadingDeps, readEvidence, readVerdict } from "./read-verdict.ts";
import { refusalOfFull, type SubmissionDeps, submitSignals } from "./submit-signals.ts";

/** What the routes need. */
export type RouteDeps = SubmissionDeps & ReadingDeps;

const defaultLifetimeMs = 600_000;
/** How long key sets may be kept: short beside the month for which a key is published before it signs. */
const keySetMaxAgeS = 300;

/** Registers VerdictService and TenantService. */
export function registerRoutes(router: ConnectRouter, deps: RouteDeps): void {
  router.service(VerdictService, verdictRoutes(deps));
  router.service(TenantService, {
    async eraseTenant({ orgId }) {
      const sessions = await deps.store.erase(orgId);
      return { erased: { sessions: BigInt(sessions) }, remaining: BigInt(await deps.store.count(orgId)) };
    },
  });
}

function verdictRoutes(deps: RouteDeps): ServiceImpl<typeof VerdictService> {
  return {
    async submitSignals(request, context) {
      const { duplicate, verdict } = await submitSignals(deps, callOf(context), request);
      return { ok: true, duplicate, ...(verdict === undefined ? {} : { verdict }) };
    },
    createVerdictSession: (request, context) => createSession(deps, callOf(context), request),
    async getVerdict({ sessionRef, waitMs }, context) {
      const reading = await readVerdict(deps, callOf(context), sessionRef, waitMs);
      if (reading.state !== "ready") throw pendingError(reading.state);
      return reading.verdict;
    },
    getVerdictEvidence: ({ sessionRef }, context) => readEvidence(deps, callOf(context), sessionRef),
    getVerdictKeySet(_request, context) {
      context.responseHeader.set("cache-control", `public, max-age=${keySetMaxAgeS}`);
      return { keys: deps.tokens.publicKeys(deps.clock.now()) };
    },
  };
}

async function createSession(deps: RouteDeps, call: Call, request: CreateVerdictSessionRequest) {
  const { sessionRef, nonce, lifetime } = request;
  const key = { orgId: call.orgId, sandbox: call.caller.sandbox, ref: sessionRef };
  const lifetimeMs = lifetime === undefined ? defaultLifetimeMs : durationMs(lifetime);
  const registration = await deps.store.register(key, { nonce, lifetimeMs });
  if (registration.outcome === "taken") {
    throw fail(
      Reason.RESOURCE_EXISTS,
      "the reference was used before: it was reported, registered differently, or is over",
    );
  }
  if (registration.outcome !== "registered") throw refusalOfFull(registration.outcome);
  deps.metrics.registered();
  return {
    sessionRef,
    orgId: call.orgId,
    state: registration.state === "ready" ? State.READY : State.COLLECTING,
    createTime: timestampFromMs(registration.createMs),
    expireTime: timestampFromMs(registration.expireMs),
    nonce,
  };
}

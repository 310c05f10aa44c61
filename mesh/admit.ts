import type { DescMethod } from "@bufbuild/protobuf";
import { Plan } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { PlanFeature, RoleSchema, Surface } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import type { Logger } from "pino";
import { type AuditDraft, type Call, createAuditDraft } from "./call.ts";
import type { Caller } from "./caller.ts";
import type { Connection } from "./connection.ts";
import { type Credentials, isGuarded } from "./credentials.ts";
import { fail, Reason } from "./errors.ts";
import type { Guard } from "./guards.ts";
import { nameOfScope, type Policy } from "./policy.ts";
import type { RateLimiter, RateLimitResult } from "./ratelimit.ts";
import { sourceOf } from "./source-of.ts";

/** What admission needs of the service around it. */
export interface AdmissionDeps {
  readonly credentials: Credentials;
  readonly limiter: RateLimiter;
  readonly log: Logger;
  /** Told of every refusal of a caller that is known, for the audit log. */
  denied(caller: Caller, policy: Policy, method: DescMethod, reason: string, requestId: string): void;
  /** Aborts when the service stops: ends streams, and nothing else. */
  readonly draining?: AbortSignal;
}

/** One request as it stands before the call. */
export interface AdmissionRequest {
  readonly method: DescMethod;
  readonly policy: Policy;
  readonly connection: Connection;
  readonly header: Headers;
  readonly requestId: string;
  readonly signal: AbortSignal;
}

/** An admitted call, and what the rate limit said. */
export interface Admission {
  readonly call: Call;
  readonly limit: RateLimitResult | undefined;
}

/**
 * Admits a request or throws the refusal: who calls, whether the method admits that kind of caller, whether the
 * credential may (scope, role, plan), and whether the rate limit has room. Fields of the request come after, in
 * `checkFields`, since over a stream they arrive later.
 */
export async function admit(request: AdmissionRequest, deps: AdmissionDeps): Promise<Admission> {
  const { policy, connection, method } = request;
  if (policy.surface === Surface.REGISTRATION && connection.listener === "public") {
    // By source address, and before the token is looked at, so that tokens cannot be guessed this way.
    const result = await deps.limiter.take("registration" satisfies LimitSurface, sourceOf(connection.address));
    if (!result.allowed) throw rateLimited(result);
  }
  const caller = await deps.credentials.authenticate(request);
  try {
    checkCaller(caller, policy, method);
  } catch (error) {
    deps.denied(caller, policy, method, error instanceof Error ? error.message : "", request.requestId);
    throw error;
  }
  const limit = await takeFrom(deps.limiter, policy, caller, connection);
  const audit: AuditDraft | undefined = policy.audit === "" ? undefined : createAuditDraft({ action: policy.audit });
  let waitSignal: AbortSignal | undefined;
  const call: Call = {
    caller,
    orgId: caller.orgId,
    requestId: request.requestId,
    audit,
    auditExempt: policy.auditExempt,
    signal: request.signal,
    waitSignal() {
      waitSignal ??= isGuarded(caller.kind)
        ? endWithCredential(request.signal, deps.credentials.guard(caller))
        : request.signal;
      return waitSignal;
    },
    log: deps.log.child({ request_id: request.requestId }),
  };
  return { call, limit };
}

/** Aborts with the request, which every request does when it has ended, and with the credential that it came by. */
function endWithCredential(signal: AbortSignal, guard: Guard): AbortSignal {
  if (signal.aborted) guard.release();
  else signal.addEventListener("abort", guard.release, { once: true });
  return AbortSignal.any([signal, guard.signal]);
}

/** `checkFields` for an admitted call; a refusal is told as every other. */
export function admitFields(
  message: Record<string, unknown>,
  call: Call,
  policy: Policy,
  method: DescMethod,
  deps: AdmissionDeps,
): void {
  try {
    checkFields(message, call.caller, policy);
  } catch (error) {
    deps.denied(call.caller, policy, method, error instanceof Error ? error.message : "", call.requestId);
    throw error;
  }
}

/** Whether the policy admits a caller that has proved who it is. Throws the refusal. */
export function checkCaller(caller: Caller, policy: Policy, method: DescMethod): void {
  const name = `${method.parent.typeName}/${method.name}`;
  if (!policy.callers.has(caller.kind)) {
    throw fail(Reason.CALLER_KIND_NOT_ALLOWED, `${name} does not admit callers of kind ${caller.kind}`, {
      method: name,
      kind: caller.kind,
    });
  }
  if (caller.kind === "peer" || caller.kind === "delegated") {
    if (caller.peer === undefined || !policy.peers.has(caller.peer)) {
      throw fail(Reason.PEER_NOT_ALLOWED, `${name} does not admit ${caller.peer ?? "this peer"}`, {
        method: name,
        peer: caller.peer ?? "",
      });
    }
  }
  if ((caller.kind === "api_key" || caller.kind === "read_token") && policy.scope !== 0) {
    if (!caller.scopes.has(policy.scope)) {
      const scope = nameOfScope(policy.scope);
      throw fail(Reason.SCOPE_MISSING, `the scope ${scope} is missing`, { scope });
    }
  }
  if (caller.kind === "session" && caller.role < policy.role) {
    const role = RoleSchema.value[policy.role]?.name.replace("ROLE_", "").toLowerCase() ?? "";
    throw fail(Reason.ROLE_MISSING, `the role ${role} is needed`, { role });
  }
  if (
    policy.feature !== PlanFeature.UNSPECIFIED &&
    caller.orgId !== "" &&
    !includesFeature(caller.plan, policy.feature)
  ) {
    const feature = PlanFeature[policy.feature]?.toLowerCase() ?? "";
    throw fail(Reason.FEATURE_NOT_IN_PLAN, `the plan does not include ${feature}`, { feature });
  }
}

const freeFeatures: readonly PlanFeature[] = [
  PlanFeature.ROLLOUTS,
  PlanFeature.EXPERIMENTS,
  PlanFeature.FEDERATED_LEARNING,
];

const featuresOfPlans: Partial<Record<Plan, readonly PlanFeature[]>> = {
  [Plan.FREE]: freeFeatures,
  [Plan.TEAM]: [...freeFeatures, PlanFeature.SSO],
  [Plan.ENTERPRISE]: [...freeFeatures, PlanFeature.SSO, PlanFeature.SCIM, PlanFeature.AUDIT_EXPORT],
};

/** Whether a plan includes a feature. An unknown plan includes nothing. */
export function includesFeature(plan: Plan, feature: PlanFeature): boolean {
  return featuresOfPlans[plan]?.includes(feature) ?? false;
}

/**
 * Checks the request fields that the policy names: a device's own id, the caller's own organisation. Empty or `-` means
 * the caller's own and is filled in. Works on the message in place. Throws the refusal.
 */
export function checkFields(message: Record<string, unknown>, caller: Caller, policy: Policy): void {
  if (policy.selfField !== "" && caller.kind === "device") {
    const value = message[policy.selfField];
    if (value === "" || value === "-") message[policy.selfField] = caller.id;
    else if (value !== caller.id) throw fail(Reason.NOT_SELF, "a device may act only on itself", {});
  }
  if (policy.orgField !== "") {
    const value = message[policy.orgField];
    if (value === "" || value === "-") message[policy.orgField] = caller.orgId;
    else if (value !== caller.orgId) {
      throw fail(Reason.ORGANIZATION_MISMATCH, "the request names another organisation than the caller's", {});
    }
  }
}

async function takeFrom(
  limiter: RateLimiter,
  policy: Policy,
  caller: Caller,
  connection: Connection,
): Promise<RateLimitResult | undefined> {
  const bucket = bucketFor(policy, caller, connection);
  if (bucket === undefined) return undefined;
  const result = await limiter.take(bucket.surface, bucket.key);
  if (!result.allowed) throw rateLimited(result);
  return result;
}

/** The error of a call that came too early. */
export function rateLimited(result: RateLimitResult): Error {
  const seconds = Math.max(1, Math.ceil(result.retryAfterMs / 1000));
  return fail(
    Reason.RATE_LIMITED,
    `too many calls: try again in ${seconds} s`,
    { limit: String(result.limit) },
    { retryAfterMs: result.retryAfterMs },
  );
}

/** Keys of the limits, as configuration names them (DESIGN 8.16). */
export type LimitSurface =
  | "registration"
  | "control_device"
  | "control_api_key"
  | "control_session"
  | "inference"
  | "edge"
  | "unauthenticated";

/** Calls per window, by surface: the seed's numbers, and the design's where the seed has none. */
export const defaultLimits: Readonly<Record<LimitSurface, { points: number; windowMs: number }>> = {
  registration: { points: 10, windowMs: 60_000 },
  control_device: { points: 100, windowMs: 60_000 },
  control_api_key: { points: 1000, windowMs: 60_000 },
  control_session: { points: 300, windowMs: 60_000 },
  inference: { points: 1000, windowMs: 60_000 },
  edge: { points: 6000, windowMs: 60_000 },
  unauthenticated: { points: 120, windowMs: 60_000 },
};

function bucketFor(
  policy: Policy,
  caller: Caller,
  connection: Connection,
): { surface: LimitSurface; key: string } | undefined {
  if (caller.kind === "peer" || caller.kind === "delegated") return undefined;
  const source = sourceOf(connection.address);
  // Nobody in particular has no credential to be counted by, and must not share one count with everybody.
  if (caller.kind === "public") {
    return policy.surface === Surface.REGISTRATION ? undefined : { surface: "unauthenticated", key: source };
  }
  switch (policy.surface) {
    case Surface.CONTROL:
      if (caller.kind === "device") return { surface: "control_device", key: caller.id };
      if (caller.kind === "session") return { surface: "control_session", key: caller.credentialId };
      return { surface: "control_api_key", key: caller.credentialId };
    case Surface.INFERENCE:
      return { surface: "inference", key: caller.credentialId };
    case Surface.EDGE:
      // By licence: certificates are renewed, and a licence may do without.
      return { surface: "edge", key: caller.id };
    case Surface.UNAUTHENTICATED:
      return { surface: "unauthenticated", key: source };
    default:
      return undefined;
  }
}

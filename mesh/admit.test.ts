import { Plan } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { PlanFeature, Role, Scope, Surface } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import { type AdmissionDeps, admit, admitFields, checkCaller, checkFields, defaultLimits } from "./admit.ts";
import type { Call } from "./call.ts";
import type { Caller, CallerKind } from "./caller.ts";
import { Reason, reasonOf } from "./errors.ts";
import { newId } from "./ids.ts";
import type { Policy } from "./policy.ts";
import { createRateLimiter } from "./ratelimit.ts";
import { createSystemCall } from "./system-call.ts";

const log = pino({ level: "silent" });
const method = ModelService.method.getModel;
const orgId = newId("org");
const kinds: readonly CallerKind[] = [
  "public",
  "session",
  "api_key",
  "device",
  "bootstrap",
  "edge",
  "partner",
  "read_token",
  "peer",
  "delegated",
  "system",
];

const openPolicy: Policy = {
  callers: new Set(kinds),
  peers: new Set(["rollout"]),
  scope: 0,
  role: Role.UNSPECIFIED,
  surface: Surface.CONTROL,
  audit: "",
  auditExempt: false,
  feature: 0,
  selfField: "",
  orgField: "",
  httpOnly: false,
  isPublic: true,
};

function callerOf(kind: CallerKind, change: Partial<Caller> = {}): Caller {
  return {
    kind,
    orgId: kind === "public" || kind === "peer" ? "" : orgId,
    id: kind === "public" ? "" : `${kind}-1`,
    credentialId: kind === "public" ? "" : `credential-${kind}`,
    scopes: new Set(),
    role: Role.UNSPECIFIED,
    plan: Plan.FREE,
    issuedMs: 0,
    sandbox: false,
    address: "192.0.2.1",
    ...(kind === "peer" || kind === "delegated" ? { peer: "rollout" } : {}),
    ...change,
  };
}

function refusal(work: () => unknown): Reason | undefined {
  try {
    work();
  } catch (error) {
    return reasonOf(error);
  }
  return undefined;
}

describe("a caller", () => {
  test.each(kinds)("of kind %s is refused where the method does not name that kind", (kind) => {
    const policy = { ...openPolicy, callers: new Set(kinds.filter((each) => each !== kind)) };
    expect(refusal(() => checkCaller(callerOf(kind), policy, method))).toBe(Reason.CALLER_KIND_NOT_ALLOWED);
    expect(refusal(() => checkCaller(callerOf(kind), openPolicy, method))).toBeUndefined();
  });

  test.each<[string, Partial<Policy>, Partial<Record<CallerKind, Reason>>]>([
    [
      "another peer",
      { peers: new Set(["verdict"]) },
      { peer: Reason.PEER_NOT_ALLOWED, delegated: Reason.PEER_NOT_ALLOWED },
    ],
    ["a scope", { scope: Scope.MODELS_READ }, { api_key: Reason.SCOPE_MISSING, read_token: Reason.SCOPE_MISSING }],
    ["a role", { role: Role.MEMBER }, { session: Reason.ROLE_MISSING }],
    [
      "a feature that the plan does not have",
      { feature: PlanFeature.SCIM },
      Object.fromEntries(
        kinds.filter((kind) => kind !== "public" && kind !== "peer").map((kind) => [kind, Reason.FEATURE_NOT_IN_PLAN]),
      ),
    ],
  ])("meets the demand of %s, if it is of a kind that can", (_, change, expected) => {
    const policy = { ...openPolicy, ...change };
    const found = Object.fromEntries(
      kinds.flatMap((kind) => {
        const reason = refusal(() => checkCaller(callerOf(kind), policy, method));
        return reason === undefined ? [] : [[kind, reason]];
      }),
    );
    expect(found).toEqual(expected);
  });

  test("that has what is demanded is admitted", () => {
    const policy = { ...openPolicy, scope: Scope.MODELS_READ, role: Role.ADMIN, feature: PlanFeature.SSO };
    const plan = Plan.TEAM;
    for (const caller of [
      callerOf("api_key", { scopes: new Set([Scope.MODELS_READ]), plan }),
      callerOf("session", { role: Role.ADMIN, plan }),
      callerOf("session", { role: Role.OWNER, plan }),
      callerOf("device", { plan }),
    ]) {
      expect(refusal(() => checkCaller(caller, policy, method))).toBeUndefined();
    }
    const poor = callerOf("session", { role: Role.MEMBER, plan });
    expect(refusal(() => checkCaller(poor, policy, method))).toBe(Reason.ROLE_MISSING);
    const other = callerOf("api_key", { scopes: new Set([Scope.MODELS_WRITE]), plan });
    expect(refusal(() => checkCaller(other, policy, method))).toBe(Reason.SCOPE_MISSING);
    const unknownPlan = callerOf("device", { plan: 99 });
    expect(refusal(() => checkCaller(unknownPlan, policy, method))).toBe(Reason.FEATURE_NOT_IN_PLAN);
  });

  test("without a peer's name is no peer", () => {
    const { peer: _, ...nameless } = callerOf("peer");
    expect(refusal(() => checkCaller(nameless, openPolicy, method))).toBe(Reason.PEER_NOT_ALLOWED);
  });
});

describe("the fields of a request", () => {
  const self: Policy = { ...openPolicy, selfField: "id" };
  const own: Policy = { ...openPolicy, orgField: "orgId" };

  test("name the device itself, or are filled in", () => {
    const device = callerOf("device", { id: "dev_1" });
    for (const id of ["", "-", "dev_1"]) {
      const message = { id };
      checkFields(message, device, self);
      expect(message.id).toBe("dev_1");
    }
    for (const id of ["dev_2", "dev_1 ", undefined, null, 0, ["dev_1"]]) {
      expect(refusal(() => checkFields({ id }, device, self))).toBe(Reason.NOT_SELF);
    }
    const message = { id: "dev_2" };
    checkFields(message, callerOf("api_key"), self);
    expect(message.id).toBe("dev_2");
  });

  test("name the caller's own organisation, or are filled in", () => {
    for (const kind of kinds.filter((each) => each !== "peer" && each !== "public")) {
      const message = { orgId: "-" };
      checkFields(message, callerOf(kind), own);
      expect(message.orgId).toBe(orgId);
      expect(refusal(() => checkFields({ orgId: newId("org") }, callerOf(kind), own))).toBe(
        Reason.ORGANIZATION_MISMATCH,
      );
    }
    expect(refusal(() => checkFields({ orgId }, callerOf("public"), own))).toBe(Reason.ORGANIZATION_MISMATCH);
  });

  test("that name another are told to the audit log", () => {
    const told: string[] = [];
    const deps = { ...depsOf(callerOf("device")), denied: (...args: unknown[]) => void told.push(String(args[3])) };
    const call: Call = { ...createSystemCall("rollout", orgId, undefined, log), caller: callerOf("device") };
    expect(refusal(() => admitFields({ id: "dev_2" }, call, self, method, deps))).toBe(Reason.NOT_SELF);
    expect(told).toEqual(["[permission_denied] a device may act only on itself"]);
  });
});

function depsOf(caller: Caller, points = 2): AdmissionDeps {
  const limits = Object.fromEntries(
    Object.entries(defaultLimits).map(([surface, limit]) => [surface, { ...limit, points }]),
  );
  return {
    credentials: {
      authenticate: async () => caller,
      guard: () => ({ signal: new AbortController().signal, release: () => undefined }),
      stop: async () => undefined,
    },
    limiter: createRateLimiter({ limits, clock: { now: () => 60_000_000 }, log }),
    log,
    denied: () => undefined,
  };
}

describe("the signal of a call that waits", () => {
  const policy = { ...openPolicy, surface: Surface.INFERENCE };
  async function callOf(kind: CallerKind) {
    const [request, credential] = [new AbortController(), new AbortController()];
    let watched = 0;
    const deps = depsOf(callerOf(kind));
    const guard = () => {
      watched += 1;
      const release = (): void => {
        watched -= 1;
      };
      return { signal: credential.signal, release };
    };
    const admitted = await admit(
      {
        method,
        policy,
        connection: { listener: kind === "peer" ? "mesh" : "public", address: "192.0.2.1" },
        header: new Headers(),
        requestId: "request-1",
        signal: request.signal,
      },
      { ...deps, credentials: { ...deps.credentials, guard } },
    );
    return { call: admitted.call, request, credential, watched: () => watched };
  }

  test("ends with the credential that the call came by, and is watched only where somebody asks", async () => {
    const { call, request, credential, watched } = await callOf("partner");
    expect(watched()).toBe(0);
    expect([call.waitSignal().aborted, call.waitSignal(), watched()]).toEqual([false, call.waitSignal(), 1]);
    const reason = new Error("revoked");
    credential.abort(reason);
    expect(call.waitSignal().reason).toBe(reason);
    request.abort();
    expect(watched()).toBe(0);
  });

  test("ends with the request, and the watch with it", async () => {
    const { call, request, watched } = await callOf("device");
    expect(call.waitSignal().aborted).toBe(false);
    request.abort();
    expect([call.waitSignal().aborted, watched()]).toEqual([true, 0]);
  });

  test("is the request's own where there is no credential to be revoked", async () => {
    const { call, request, watched } = await callOf("peer");
    expect([call.waitSignal(), watched()]).toEqual([request.signal, 0]);
  });
});

describe("the rate limit", () => {
  async function takes(policy: Policy, callers: readonly Caller[]): Promise<(Reason | "ok")[]> {
    const base = depsOf(callers[0] ?? callerOf("public"));
    const results: (Reason | "ok")[] = [];
    for (const caller of callers) {
      const deps = { ...base, credentials: { ...base.credentials, authenticate: async () => caller } };
      const listener = caller.kind === "peer" || caller.kind === "delegated" ? ("mesh" as const) : ("public" as const);
      const request = {
        method,
        policy,
        connection: { listener, address: caller.address },
        header: new Headers(),
        requestId: "request-1",
        signal: new AbortController().signal,
      };
      results.push(
        await admit(request, deps).then(
          () => "ok" as const,
          (error) => reasonOf(error) ?? Reason.INTERNAL,
        ),
      );
    }
    return results;
  }
  const limited = ["ok", "ok", Reason.RATE_LIMITED];

  test.each<CallerKind>(["session", "api_key", "device"])(
    "counts a %s by itself, wherever it calls from",
    async (kind) => {
      const [one, two, three] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map((address) => callerOf(kind, { address }));
      const neighbour = callerOf(kind, { id: "another", credentialId: "another" });
      if (one === undefined || two === undefined || three === undefined) throw new Error("unreachable");
      expect(await takes(openPolicy, [one, two, three, neighbour])).toEqual([...limited, "ok"]);
    },
  );

  test("counts nobody in particular by address, so that one cannot use up everybody's", async () => {
    const at = (address: string) => callerOf("public", { address });
    for (const surface of [Surface.UNAUTHENTICATED, Surface.CONTROL, Surface.MESH]) {
      const callers = [at("192.0.2.1"), at("192.0.2.1"), at("192.0.2.1"), at("192.0.2.2")];
      expect(await takes({ ...openPolicy, surface }, callers)).toEqual([...limited, "ok"]);
    }
  });

  test("counts registrations by source before the credential is looked at, IPv6 by its network", async () => {
    const policy = { ...openPolicy, surface: Surface.REGISTRATION };
    const at = (address: string) => callerOf("bootstrap", { address, id: address, credentialId: address });
    expect(
      await takes(policy, [at("2001:db8::1"), at("2001:db8::2"), at("2001:db8::3"), at("2001:db8:0:1::1")]),
    ).toEqual([...limited, "ok"]);
  });

  test("counts an edge by its licence, whatever certificates it has", async () => {
    const policy = { ...openPolicy, surface: Surface.EDGE };
    const callers = ["ecr_1", "", "ecr_2"].map((credentialId) => callerOf("edge", { id: "lic_1", credentialId }));
    const neighbour = callerOf("edge", { id: "lic_2", credentialId: "" });
    expect(await takes(policy, [...callers, neighbour])).toEqual([...limited, "ok"]);
  });

  test("counts a partner's backend by its key", async () => {
    const policy = { ...openPolicy, surface: Surface.INFERENCE };
    const callers = Array.from({ length: 3 }, () => callerOf("partner"));
    const neighbour = callerOf("partner", { id: "another", credentialId: "another" });
    expect(await takes(policy, [...callers, neighbour])).toEqual([...limited, "ok"]);
  });

  test("does not count peers", async () => {
    const callers = Array.from({ length: 5 }, () => callerOf("peer"));
    expect(await takes(openPolicy, callers)).toEqual(Array(5).fill("ok"));
  });
});

test("a method that is audited has a draft, and the others have none", async () => {
  const request = {
    method,
    connection: { listener: "public" as const, address: "192.0.2.1" },
    header: new Headers(),
    requestId: "request-1",
    signal: new AbortController().signal,
  };
  const deps = depsOf(callerOf("api_key"));
  const audited = await admit({ ...request, policy: { ...openPolicy, audit: "model.create" } }, deps);
  expect(audited.call.audit).toMatchObject({ action: "model.create", state: "pending" });
  expect((await admit({ ...request, policy: openPolicy }, deps)).call.audit).toBeUndefined();
});

import { create, type DescMethod, type MessageInitShape, setExtension } from "@bufbuild/protobuf";
import { MethodOptionsSchema } from "@bufbuild/protobuf/wkt";
import { Health } from "@octomesh/proto/grpc/health/v1/health_pb";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import {
  CallerKind,
  MethodPolicySchema,
  method as methodOption,
  Role,
  Scope,
  Surface,
} from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { describe, expect, test } from "vitest";
import { contractServices } from "./contract.ts";
import { loadPolicies, nameOfScope, ownerOf, policyOf, scopeOfName } from "./policy.ts";

/** A method of the contract with another policy, or with none. */
function methodWith(policy: MessageInitShape<typeof MethodPolicySchema> | undefined, like: DescMethod): DescMethod {
  const options = create(MethodOptionsSchema);
  if (policy !== undefined) setExtension(options, methodOption, create(MethodPolicySchema, policy));
  return { ...like, proto: { ...like.proto, options } };
}

const good: MessageInitShape<typeof MethodPolicySchema> = {
  callers: [CallerKind.API_KEY, CallerKind.SESSION, CallerKind.PEER],
  peers: ["rollout"],
  scope: Scope.MODELS_READ,
  role: Role.MEMBER,
  surface: Surface.CONTROL,
};
const { getModel } = ModelService.method;

describe("a method's policy", () => {
  test("is read as it stands", () => {
    expect(policyOf(methodWith({ ...good, audit: "model.get", orgField: "id" }, getModel))).toEqual({
      callers: new Set(["api_key", "session", "peer"]),
      peers: new Set(["rollout"]),
      scope: Scope.MODELS_READ,
      role: Role.MEMBER,
      surface: Surface.CONTROL,
      audit: "model.get",
      auditExempt: false,
      feature: 0,
      selfField: "",
      orgField: "id",
      httpOnly: false,
      isPublic: true,
    });
  });

  test.each<[string, MessageInitShape<typeof MethodPolicySchema> | undefined, RegExp]>([
    ["there is none", undefined, /has no policy/],
    ["it admits nobody", { ...good, callers: [] }, /admits nobody/],
    ["it admits an unspecified kind", { ...good, callers: [CallerKind.UNSPECIFIED] }, /unknown kind/],
    ["it admits a kind that is not in the contract", { ...good, callers: [99 as CallerKind] }, /unknown kind/],
    ["it admits background work from a network", { ...good, callers: [CallerKind.SYSTEM] }, /unknown kind/],
    ["it admits peers and names none", { ...good, peers: [] }, /names no peers/],
    ["it admits delegates and names no peers", { ...good, callers: [CallerKind.DELEGATED], peers: [] }, /no peers/],
    ["it names a peer that is no service", { ...good, peers: ["billing"] }, /no service of the mesh/],
    ["it demands no scope of keys", { ...good, scope: Scope.UNSPECIFIED }, /no scope/],
    [
      "it demands no scope of read tokens",
      { ...good, callers: [CallerKind.READ_TOKEN], scope: Scope.UNSPECIFIED },
      /no scope/,
    ],
    ["it demands no role of members", { ...good, role: Role.UNSPECIFIED }, /no role/],
    ["it counts against no limit", { ...good, surface: Surface.UNSPECIFIED }, /no rate limit/],
    [
      "it admits everybody and names others, whose credentials nobody would look at",
      { ...good, callers: [CallerKind.PUBLIC, CallerKind.SESSION] },
      /admits everybody/,
    ],
    [
      "it checks a field that the request does not have",
      { ...good, selfField: "device_id" },
      /no string of its request/,
    ],
    ["it checks a field that is no string", { ...good, orgField: "page_size" }, /no string of its request/],
  ])("stops the start-up where %s", (_, policy, problem) => {
    const method = methodWith(policy, policy?.orgField === "page_size" ? ModelService.method.listModels : getModel);
    expect(() => policyOf(method)).toThrow(problem);
  });

  test("names its fields as messages do", () => {
    const method = methodWith({ ...good, orgField: "org_id" }, TenantService.method.eraseTenant);
    expect(policyOf(method).orgField).toBe("orgId");
  });

  test("lets only GetCaller do without a scope of keys", () => {
    expect(policyOf(SessionService.method.getCaller).scope).toBe(0);
  });
});

describe("the policies of the contract", () => {
  test("are all good, and cover every method", () => {
    const policies = loadPolicies(contractServices);
    expect(policies.size).toBe(contractServices.flatMap((service) => service.methods).length);
  });

  test("of foreign services are open, and theirs alone", () => {
    const policies = loadPolicies([Health]);
    expect(policies.get(Health.method.check)?.callers).toEqual(new Set(["public", "peer"]));
    expect(() => loadPolicies([{ ...Health }])).toThrow(/has no policy/);
  });
});

test("every rpc service but one has one owner", () => {
  expect(ownerOf(DeviceService)).toBe("device-registry");
  expect(contractServices.filter((service) => ownerOf(service) === undefined)).toEqual([TenantService]);
});

test("scopes have names, and names have scopes", () => {
  expect(nameOfScope(Scope.MODELS_READ)).toBe("models:read");
  expect(scopeOfName("models:read")).toBe(Scope.MODELS_READ);
  expect([nameOfScope(Scope.UNSPECIFIED), scopeOfName("everything"), scopeOfName("__proto__")]).toEqual([
    "",
    undefined,
    undefined,
  ]);
});

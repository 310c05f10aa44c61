import { type DescMethod, type DescService, getOption, hasOption, ScalarType } from "@bufbuild/protobuf";
import { Health } from "@octomesh/proto/grpc/health/v1/health_pb";
import { ServerReflection } from "@octomesh/proto/grpc/reflection/v1/reflection_pb";
import { ServerReflection as ServerReflectionAlpha } from "@octomesh/proto/grpc/reflection/v1alpha/reflection_pb";
import {
  AuditExemption,
  type MethodPolicy,
  method as methodOption,
  Role,
  type Scope,
  ScopeSchema,
  Surface,
  scope_name,
  service as serviceOption,
  CallerKind as WireCallerKind,
} from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { type CallerKind, kindOfWire } from "./caller.ts";
import { isServiceName, type ServiceName } from "./service-name.ts";

/** Who may call a method, read from its descriptor once, at start. */
export interface Policy {
  readonly callers: ReadonlySet<CallerKind>;
  readonly peers: ReadonlySet<ServiceName>;
  readonly scope: Scope;
  readonly role: Role;
  readonly surface: Surface;
  /** The audited action; "" for reads and reports. */
  readonly audit: string;
  /** The method writes without an audit record of its own, for a reason that the contract names. */
  readonly auditExempt: boolean;
  readonly feature: number;
  /** Property of the request message that must hold the calling device's own id; "" for none. */
  readonly selfField: string;
  /** Property of the request message that must hold the caller's own organisation; "" for none. */
  readonly orgField: string;
  readonly httpOnly: boolean;
  /** Some caller other than a peer is admitted, so that the method exists on the public listener. */
  readonly isPublic: boolean;
}

/** Methods of foreign contracts, which cannot carry our option. The only policies that are not in the contract. */
const foreign: readonly DescService[] = [Health, ServerReflection, ServerReflectionAlpha];

const openPolicy: Policy = {
  callers: new Set<CallerKind>(["public", "peer"]),
  peers: new Set<ServiceName>(["identity", "device-registry", "rollout", "telemetry", "edge-relay", "verdict"]),
  scope: 0,
  role: Role.UNSPECIFIED,
  surface: Surface.UNAUTHENTICATED,
  audit: "",
  auditExempt: false,
  feature: 0,
  selfField: "",
  orgField: "",
  httpOnly: false,
  isPublic: true,
};

/**
 * Reads the policies of rpc services. Throws, and thereby stops the start-up, where a method has none, admits nobody,
 * or demands nothing of a caller kind of which something must be demanded.
 */
export function loadPolicies(services: Iterable<DescService>): ReadonlyMap<DescMethod, Policy> {
  const policies = new Map<DescMethod, Policy>();
  for (const service of services) {
    const isForeign = foreign.includes(service);
    for (const method of service.methods) policies.set(method, isForeign ? openPolicy : policyOf(method));
  }
  return policies;
}

/** The policy that a method's descriptor carries. Throws as `loadPolicies` does. */
export function policyOf(method: DescMethod): Policy {
  const name = `${method.parent.typeName}/${method.name}`;
  if (!hasOption(method, methodOption)) throw new Error(`${name} has no policy`);
  const option: MethodPolicy = getOption(method, methodOption);
  const callers = new Set<CallerKind>();
  for (const wire of option.callers) {
    const kind = kindOfWire(wire);
    if (kind === undefined || wire === WireCallerKind.SYSTEM)
      throw new Error(`${name} admits an unknown kind of caller`);
    callers.add(kind);
  }
  if (callers.size === 0) throw new Error(`${name} admits nobody`);
  const peers = new Set<ServiceName>();
  for (const peer of option.peers) {
    if (!isServiceName(peer)) throw new Error(`${name} admits ${peer}, which is no service of the mesh`);
    peers.add(peer);
  }
  if ((callers.has("peer") || callers.has("delegated")) && peers.size === 0) throw new Error(`${name} names no peers`);
  if ((callers.has("api_key") || callers.has("read_token")) && option.scope === 0 && !isOwnBusiness(method)) {
    throw new Error(`${name} demands no scope of keys`);
  }
  if (callers.has("session") && option.role === Role.UNSPECIFIED) throw new Error(`${name} demands no role of members`);
  if (callers.has("public") && [...callers].some((kind) => !["public", "peer", "delegated"].includes(kind))) {
    throw new Error(`${name} admits everybody, whose credentials are ignored, and names other kinds of caller`);
  }
  if (option.surface === Surface.UNSPECIFIED) throw new Error(`${name} counts against no rate limit`);
  return {
    callers,
    peers,
    scope: option.scope,
    role: option.role,
    surface: option.surface,
    audit: option.audit,
    auditExempt: option.auditExemption !== AuditExemption.UNSPECIFIED,
    feature: option.feature,
    selfField: fieldOf(method, option.selfField),
    orgField: fieldOf(method, option.orgField),
    httpOnly: option.httpOnly,
    isPublic: [...callers].some((kind) => kind !== "peer" && kind !== "delegated"),
  };
}

/** The property of a request message by the name of its field, which must be a plain string. */
function fieldOf(method: DescMethod, name: string): string {
  if (name === "") return "";
  const field = method.input.fields.find((each) => each.name === name);
  if (field?.fieldKind !== "scalar" || field.scalar !== ScalarType.STRING) {
    throw new Error(`${method.parent.typeName}/${method.name} checks ${name}, which is no string of its request`);
  }
  return field.localName;
}

/** GetCaller tells a caller what it holds already; it is the one method that keys may call without any scope. */
function isOwnBusiness(method: DescMethod): boolean {
  return method.parent.typeName === "octomesh.identity.v1.SessionService" && method.name === "GetCaller";
}

/** Which service of the mesh implements an rpc service: undefined for TenantService, which all do, and for foreign ones. */
export function ownerOf(service: DescService): ServiceName | undefined {
  if (!hasOption(service, serviceOption)) return undefined;
  const { owner, everyService } = getOption(service, serviceOption);
  if (everyService) return undefined;
  if (!isServiceName(owner)) throw new Error(`${service.typeName} has no owner in the mesh`);
  return owner;
}

const scopeNames = new Map<Scope, string>();
const scopesByName = new Map<string, Scope>();
for (const value of ScopeSchema.values) {
  if (!hasOption(value, scope_name)) continue;
  scopeNames.set(value.number, getOption(value, scope_name));
  scopesByName.set(getOption(value, scope_name), value.number);
}

/** The wire name of a scope, such as `models:read`. */
export function nameOfScope(scope: Scope): string {
  return scopeNames.get(scope) ?? "";
}

/** The scope of a wire name; undefined if there is none. */
export function scopeOfName(name: string): Scope | undefined {
  return scopesByName.get(name);
}

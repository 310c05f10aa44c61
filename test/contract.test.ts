import { readdirSync } from "node:fs";
import { type DescField, type DescMessage, getOption, hasOption, ScalarType } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import {
  type BytesRules,
  type FieldRules,
  field as fieldRules,
  Ignore,
  type StringRules,
} from "@octomesh/proto/buf/validate/validate_pb";
import { code, ReasonSchema } from "@octomesh/proto/octomesh/errors/v1/reason_pb";
import {
  AuditExemption,
  CallerKind,
  DataClass,
  data_class,
  fields as fieldsOption,
  Role,
  Scope,
  ScopeSchema,
  Surface,
  scope_meaning,
  scope_name,
} from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { describe, expect, it } from "vitest";
import { type ContractMethod, loadContract, pathVariables } from "../tools/contract.mjs";
import {
  auditExemptions,
  foreignPaths,
  notSecret,
  withoutIdempotency,
  withoutPages,
  withoutRest,
  withoutScope,
} from "./contract-exceptions.ts";

const contract = await loadContract();
const { methods, services } = contract;
const serviceNames = readdirSync(new URL("../services/", import.meta.url)).sort();

/** The options themselves are described by messages that no call carries. */
const messages = contract.messages.filter(
  (message) => !["octomesh.policy.v1", "octomesh.errors.v1"].includes(message.file.proto.package),
);

const meshKinds = new Set([CallerKind.PEER, CallerKind.DELEGATED, CallerKind.SYSTEM]);

function admits(method: ContractMethod, ...kinds: CallerKind[]): boolean {
  return method.policy?.callers.some((kind) => kinds.includes(kind)) ?? false;
}

function isMutation(method: ContractMethod): boolean {
  return method.desc.idempotency !== Idempotency.NO_SIDE_EFFECTS;
}

function isOfTheMesh(method: ContractMethod): boolean {
  return method.policy?.callers.every((kind) => meshKinds.has(kind)) ?? false;
}

/** Names of the methods that break a rule: an assertion on it shows all of them at once. */
function violators(rule: (method: ContractMethod) => boolean): string[] {
  return methods.filter((method) => !rule(method)).map((method) => method.name);
}

function sorted(list: Iterable<string>): string[] {
  return [...list].sort();
}

function rulesOf(field: DescField): FieldRules | undefined {
  return hasOption(field, fieldRules) ? getOption(field, fieldRules) : undefined;
}

function classOf(field: DescField): DataClass {
  if (hasOption(field, data_class)) return getOption(field, data_class);
  return hasOption(field.parent, fieldsOption) ? getOption(field.parent, fieldsOption) : DataClass.UNSPECIFIED;
}

function nameOf(field: DescField): string {
  return `${field.parent.typeName.replace(/^octomesh\./, "")}.${field.name}`;
}

/** Every message of the contract that a message can hold, itself included. */
function reachable(root: DescMessage, found = new Set<DescMessage>()): Set<DescMessage> {
  if (found.has(root)) return found;
  found.add(root);
  for (const field of root.fields) {
    if (field.message !== undefined) reachable(field.message, found);
  }
  return found;
}

describe("every service", () => {
  it("names the service of the mesh that implements it, or says that all do", () => {
    const ownerless = methods
      .filter(
        ({ owner }) =>
          owner?.everyService !== (owner?.owner === "") || !(owner.everyService || serviceNames.includes(owner.owner)),
      )
      .map(({ name }) => name);
    expect(ownerless).toEqual([]);
    expect(services.filter((service) => service.methods.length === 0).map((service) => service.typeName)).toEqual([]);
  });
});

describe("every method", () => {
  it("carries a policy", () => {
    expect(violators(({ policy }) => policy !== undefined)).toEqual([]);
  });

  it("admits at least one kind of caller, each once, and never background work", () => {
    expect(
      violators(
        ({ policy }) =>
          policy !== undefined &&
          policy.callers.length > 0 &&
          new Set(policy.callers).size === policy.callers.length &&
          !policy.callers.includes(CallerKind.UNSPECIFIED) &&
          !policy.callers.includes(CallerKind.SYSTEM),
      ),
    ).toEqual([]);
  });

  it("admits no other credential where it admits everybody: it would be ignored", () => {
    const others = (method: ContractMethod) =>
      method.policy?.callers.filter((kind) => kind !== CallerKind.PUBLIC && !meshKinds.has(kind)) ?? [];
    expect(violators((method) => !admits(method, CallerKind.PUBLIC) || others(method).length === 0)).toEqual([]);
  });

  it("names the services that may call where services may, and only there", () => {
    expect(
      violators((method) => {
        const peers = method.policy?.peers ?? [];
        const demanded = admits(method, CallerKind.PEER, CallerKind.DELEGATED);
        return demanded === peers.length > 0 && peers.every((peer) => serviceNames.includes(peer));
      }),
    ).toEqual([]);
  });

  it("demands a scope of API keys and read tokens, and only of them", () => {
    const exceptions = violators((method) => {
      const demanded = admits(method, CallerKind.API_KEY, CallerKind.READ_TOKEN);
      return demanded === ((method.policy?.scope ?? Scope.UNSPECIFIED) !== Scope.UNSPECIFIED);
    });
    expect(sorted(exceptions)).toEqual(sorted(Object.keys(withoutScope)));
  });

  it("lets read tokens read and nothing else", () => {
    expect(violators((method) => !admits(method, CallerKind.READ_TOKEN) || !isMutation(method))).toEqual([]);
  });

  it("demands a role of sessions, and only of them", () => {
    expect(
      violators(
        (method) =>
          admits(method, CallerKind.SESSION) === ((method.policy?.role ?? Role.UNSPECIFIED) !== Role.UNSPECIFIED),
      ),
    ).toEqual([]);
  });

  it("has a surface: the mesh's own exactly where only services may call, and that of strangers where anybody may", () => {
    expect(violators(({ policy }) => policy !== undefined && policy.surface !== Surface.UNSPECIFIED)).toEqual([]);
    expect(violators((method) => isOfTheMesh(method) === (method.policy?.surface === Surface.MESH))).toEqual([]);
    expect(
      violators((method) => !admits(method, CallerKind.PUBLIC) || method.policy?.surface === Surface.UNAUTHENTICATED),
    ).toEqual([]);
  });

  it("declares its idempotency, but for the closed list of those that a repetition must fail", () => {
    const exceptions = violators(({ desc }) => desc.idempotency !== Idempotency.IDEMPOTENCY_UNKNOWN);
    expect(sorted(exceptions)).toEqual(sorted(Object.keys(withoutIdempotency)));
  });

  it("is audited where it changes something, but for the closed list of exemptions", () => {
    const exempt = methods
      .filter((method) => isMutation(method) && method.policy?.audit === "")
      .map(({ name, policy }) => [name, AuditExemption[policy?.auditExemption ?? 0]]);
    expect(Object.fromEntries(exempt)).toEqual(auditExemptions);
  });

  it("states an exemption exactly where it is neither audited nor a read", () => {
    expect(
      violators((method) => {
        const stated = method.policy?.auditExemption !== AuditExemption.UNSPECIFIED;
        return stated === (isMutation(method) && method.policy?.audit === "");
      }),
    ).toEqual([]);
  });

  it("leaves no audit record where it only reads", () => {
    expect(violators((method) => isMutation(method) || method.policy?.audit === "")).toEqual([]);
  });

  it("has an audit action of the form noun.verb that no other method has", () => {
    const actions = methods.flatMap(({ policy }) => (policy?.audit ? [policy.audit] : []));
    expect(actions.filter((action) => !/^[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*$/.test(action))).toEqual([]);
    expect(actions.filter((action, index) => actions.indexOf(action) !== index)).toEqual([]);
    expect(actions.filter((action) => action.length > 64)).toEqual([]);
  });

  it("names string fields of its request where it ties a call to the caller's device or organisation", () => {
    const isString = (method: ContractMethod, name: string) =>
      name === "" ||
      method.desc.input.fields.some(
        (field) => field.name === name && field.fieldKind === "scalar" && field.scalar === ScalarType.STRING,
      );
    expect(violators((method) => isString(method, method.policy?.selfField ?? ""))).toEqual([]);
    expect(violators((method) => isString(method, method.policy?.orgField ?? ""))).toEqual([]);
  });

  it("ties a device to itself where its request names a device", () => {
    expect(
      violators(
        (method) =>
          !admits(method, CallerKind.DEVICE) ||
          !method.desc.input.fields.some(
            (field) => rulesOf(field)?.type.value && patternOf(field).startsWith("^dev_"),
          ) ||
          method.policy?.selfField !== "",
      ),
    ).toEqual([]);
  });
});

describe("REST", () => {
  it("reaches every method that callers outside the mesh may call, but for a closed list", () => {
    const exceptions = violators((method) => isOfTheMesh(method) || method.bindings.length > 0);
    expect(sorted(exceptions)).toEqual(sorted(Object.keys(withoutRest)));
  });

  it("reaches no method that only services may call", () => {
    expect(violators((method) => !isOfTheMesh(method) || method.bindings.length === 0)).toEqual([]);
  });

  it("lives under /api/v1, but for a closed list of paths", () => {
    const paths = methods.flatMap(({ bindings }) => bindings.map(({ path }) => path));
    const elsewhere = paths.filter((path) => !path.startsWith("/api/v1/"));
    expect(sorted(new Set(elsewhere))).toEqual(sorted(Object.keys(foreignPaths)));
  });

  it("gives no two methods the same verb and path", () => {
    const keys = methods.flatMap(({ bindings }) =>
      bindings.map(({ verb, path }) => `${verb} ${path.replace(/\{[^}]*\}/g, "{}")}`),
    );
    expect(keys.filter((key, index) => keys.indexOf(key) !== index)).toEqual([]);
  });

  it("takes every variable of a path from a scalar field, and every body from the request", () => {
    expect(
      violators(({ desc, bindings }) =>
        bindings.every(
          ({ path, body }) =>
            pathVariables(path).every((name) => {
              const field = desc.input.fields.find((candidate) => candidate.name === name);
              return field?.fieldKind === "scalar" || field?.fieldKind === "enum";
            }) &&
            (body === "" || body === "*" || desc.input.fields.some((field) => field.name === body)),
        ),
      ),
    ).toEqual([]);
  });

  it("reads by GET, and by GET only", () => {
    expect(
      violators((method) => method.bindings.every(({ verb }) => (verb === "GET") === !isMutation(method))),
    ).toEqual([]);
  });
});

describe("lists", () => {
  it("page, but for a closed list", () => {
    const lists = methods.filter(({ desc }) => desc.name.startsWith("List"));
    const unpaged = lists.filter(({ desc }) => {
      const scalar = (message: DescMessage, name: string) => {
        const field = message.fields.find((candidate) => candidate.name === name);
        return field?.fieldKind === "scalar" ? field.scalar : undefined;
      };
      return !(
        scalar(desc.input, "page_size") === ScalarType.INT32 &&
        scalar(desc.input, "page_token") === ScalarType.STRING &&
        scalar(desc.output, "next_page_token") === ScalarType.STRING &&
        desc.output.fields.filter((field) => field.fieldKind === "list" && field.message !== undefined).length === 1
      );
    });
    expect(lists.length).toBeGreaterThan(0);
    expect(sorted(unpaged.map(({ name }) => name))).toEqual(sorted(Object.keys(withoutPages)));
  });

  it("are what every method is that pages", () => {
    expect(
      violators(
        ({ desc }) => desc.name.startsWith("List") || !desc.input.fields.some((field) => field.name === "page_token"),
      ),
    ).toEqual([]);
  });
});

describe("every field of a request", () => {
  const requests = new Set<DescMessage>();
  for (const { desc } of methods) reachable(desc.input, requests);

  it("is bounded: text and bytes in length, lists and maps in number and in what they hold", () => {
    const unbounded = [...requests]
      .filter((message) => message.file.proto.package.startsWith("octomesh."))
      .flatMap((message) => message.fields)
      .filter((field) => !isBounded(field))
      .map(nameOf);
    expect(unbounded).toEqual([]);
  });

  it("has a type that the contract knows: no Any, no Struct, no Value", () => {
    const foreign = [...requests].map(({ typeName }) => typeName).filter((name) => !name.startsWith("octomesh."));
    expect(
      foreign.filter((name) => !["Duration", "Timestamp", "Empty"].includes(name.replace("google.protobuf.", ""))),
    ).toEqual([]);
  });

  it("keeps its bounds: nothing is exempt from validation", () => {
    const ignored = [...requests]
      .flatMap((message) => message.fields)
      .filter((field) => rulesOf(field)?.ignore === Ignore.ALWAYS)
      .map(nameOf);
    expect(ignored).toEqual([]);
  });
});

describe("every field", () => {
  it("has a data class, its own or its message's", () => {
    const unclassified = messages
      .flatMap((message) => message.fields)
      .filter((field) => classOf(field) === DataClass.UNSPECIFIED)
      .map(nameOf);
    expect(unclassified).toEqual([]);
  });

  it("that sounds like a secret is one", () => {
    const sounds =
      /(^|_)(secret|password|passphrase|seed|private_key|signing_key|api_key|partner_key|license|token|grant|setup_code|invitation_code|bootstrap)(_pem|_der)?$/;
    const exempt = /^(next_)?page_token$/;
    const open = messages
      .flatMap((message) => message.fields)
      .filter((field) => isTextual(field) && sounds.test(field.name) && !exempt.test(field.name))
      .filter((field) => classOf(field) !== DataClass.SECRET)
      .map(nameOf);
    expect(sorted(open)).toEqual(sorted(Object.keys(notSecret)));
  });

  it("that holds an e-mail address is personal", () => {
    const open = messages
      .flatMap((message) => message.fields)
      .filter((field) => /(^|_)email$/.test(field.name) && classOf(field) !== DataClass.PERSONAL)
      .map(nameOf);
    expect(open).toEqual([]);
  });
});

describe("telemetry", () => {
  const report = methods.find(({ name }) => name === "TelemetryService.ReportTelemetry");
  const carried = [...(report === undefined ? [] : reachable(report.desc.input))];

  it("holds nothing but numbers, enums, flags, times, and identifiers of a fixed form", () => {
    const free = carried
      .filter((message) => message.file.proto.package.startsWith("octomesh."))
      .flatMap((message) => message.fields)
      .filter((field) => !isMinimal(field))
      .map(nameOf);
    expect(carried.map(({ name }) => name)).toEqual(
      expect.arrayContaining(["HealthReport", "LatencyReport", "QualityReport", "RolloutProgress"]),
    );
    expect(free).toEqual([]);
  });

  it("holds nothing personal and nothing secret", () => {
    const open = carried
      .filter((message) => message.file.proto.package.startsWith("octomesh."))
      .flatMap((message) => message.fields)
      .filter((field) => ![DataClass.OPERATIONAL, DataClass.IDENTIFIER].includes(classOf(field)))
      .map(nameOf);
    expect(open).toEqual([]);
  });
});

describe("scopes and reasons", () => {
  it("have each scope named and explained, once", () => {
    const named = ScopeSchema.values.filter(({ number }) => number !== Scope.UNSPECIFIED);
    const names = named.map((value) => (hasOption(value, scope_name) ? getOption(value, scope_name) : ""));
    expect(names.filter((name) => !/^[a-z]+:[a-z]+$/.test(name))).toEqual([]);
    expect(new Set(names).size).toBe(names.length);
    expect(named.filter((value) => !getOption(value, scope_meaning).endsWith("."))).toEqual([]);
  });

  it("have a status code for each reason", () => {
    const known = ReasonSchema.values.filter(({ number }) => number !== 0);
    expect(known.filter((value) => !hasOption(value, code)).map(({ name }) => name)).toEqual([]);
    expect(known.filter((value) => Number(getOption(value, code)) === 0).map(({ name }) => name)).toEqual([]);
  });
});

function isTextual(field: DescField): boolean {
  const scalar = field.fieldKind === "scalar" || field.fieldKind === "list" ? field.scalar : undefined;
  return scalar === ScalarType.STRING || scalar === ScalarType.BYTES;
}

function patternOf(field: DescField): string {
  const rules = rulesOf(field)?.type;
  return rules?.case === "string" ? rules.value.pattern : "";
}

function isBounded(field: DescField): boolean {
  const rules = rulesOf(field);
  switch (field.fieldKind) {
    case "scalar":
      return isScalarBounded(field.scalar, rules);
    case "list": {
      if (rules?.type.case !== "repeated" || rules.type.value.maxItems === 0n) return false;
      return field.listKind !== "scalar" || isScalarBounded(field.scalar, rules.type.value.items);
    }
    case "map": {
      if (rules?.type.case !== "map" || rules.type.value.maxPairs === 0n) return false;
      const { keys, values } = rules.type.value;
      return (
        isScalarBounded(field.mapKey, keys) && (field.mapKind !== "scalar" || isScalarBounded(field.scalar, values))
      );
    }
    default:
      return true;
  }
}

function isScalarBounded(scalar: ScalarType, rules: FieldRules | undefined): boolean {
  switch (scalar) {
    case ScalarType.STRING:
      return rules?.type.case === "string" && isStringBounded(rules.type.value);
    case ScalarType.BYTES:
      return rules?.type.case === "bytes" && isBytesBounded(rules.type.value);
    default:
      return true;
  }
}

function isStringBounded(rules: StringRules): boolean {
  return (
    rules.maxLen > 0n ||
    rules.len > 0n ||
    rules.maxBytes > 0n ||
    rules.lenBytes > 0n ||
    rules.in.length > 0 ||
    rules.wellKnown.case === "uuid" ||
    isFinitePattern(rules.pattern)
  );
}

function isBytesBounded(rules: BytesRules): boolean {
  return rules.maxLen > 0n || rules.len > 0n;
}

/** Anchored at both ends and without a quantifier that has no upper limit. */
function isFinitePattern(pattern: string): boolean {
  const bare = pattern.replace(/\\./g, "x").replace(/\[[^\]]*\]/g, "x");
  return /^\^.*\$$/.test(bare) && !/[*+]|\{\d*,\}/.test(bare) && !/\|/.test(bare.replace(/\([^()]*\)/g, "x"));
}

function isMinimal(field: DescField): boolean {
  if (field.fieldKind === "enum") return true;
  if (field.fieldKind === "map") return false;
  if (field.message !== undefined) {
    const { typeName } = field.message;
    return typeName.startsWith("octomesh.") || /^google\.protobuf\.(Timestamp|Duration)$/.test(typeName);
  }
  if (field.fieldKind === "list") return field.listKind === "enum" || !isTextual(field);
  if (!isTextual(field)) return true;
  return isFinitePattern(patternOf(field)) && classOf(field) === DataClass.IDENTIFIER;
}

// Writes docs/openapi.json: the REST surface as OpenAPI 3.1, from the bindings, bounds, policies and comments in proto/.
// With `--check` it fails when the file differs from what it would write.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { createFileRegistry, fromBinary, getOption, hasOption, ScalarType } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { getComments } from "@bufbuild/protoplugin";
import { field as fieldRules, StringRulesSchema } from "@octomesh/proto/buf/validate/validate_pb";
import {
  AuditExemption,
  CallerKind,
  DataClass,
  data_class,
  method as methodPolicy,
  PlanFeature,
  Role,
  Scope,
  ScopeSchema,
  Surface,
  scope_name,
} from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { bindingsOf, loadContract, pathVariables } from "./contract.mjs";
import { restSchemas, restShapes } from "./rest-shapes.mjs";
import { writeGenerated } from "./write-generated.mjs";

/** Kinds of caller that reach the REST surface, and how each shows who it is. */
const schemes = {
  SESSION: { type: "http", scheme: "bearer", bearerFormat: "JWT", description: "Access token of a member's session." },
  API_KEY: { type: "http", scheme: "bearer", description: "API key, `edg_live_…` or `edg_test_…`." },
  DEVICE: { type: "http", scheme: "bearer", bearerFormat: "JWT", description: "Access token of a device." },
  BOOTSTRAP: { type: "http", scheme: "bearer", description: "Bootstrap or enrolment token, `edg_bootstrap_…`." },
  PARTNER: {
    type: "http",
    scheme: "bearer",
    description: "Partner key, `edg_partner_…`; or in `x-octet-partner-key`.",
  },
  READ_TOKEN: { type: "http", scheme: "bearer", description: "Read token, `edg_read_…`." },
  EDGE: { type: "mutualTLS", description: "Certificate of an edge, beside its licence in `x-octet-license`." },
};

/** Messages whose JSON is not an object of their fields. */
const wellKnown = new Set(["google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.Empty"]);

const registry = readDescriptors();
const contract = await loadContract();
const scopeNames = new Map();
for (const value of ScopeSchema.values) {
  if (hasOption(value, scope_name)) scopeNames.set(value.number, getOption(value, scope_name));
}

const schemas = new Map();
const paths = {};
const tags = [];
for (const service of contract.services.map(({ typeName }) => registry.getService(typeName))) {
  const bound = service.methods.filter((method) => bindingsOf(method).length > 0);
  if (bound.length > 0) tags.push({ name: service.name, description: commentOf(service) });
  for (const method of bound) {
    for (const [index, binding] of bindingsOf(method).entries()) {
      paths[binding.path] ??= {};
      paths[binding.path][binding.verb.toLowerCase()] = operation(method, binding, index);
    }
  }
}

const document = {
  openapi: "3.1.0",
  info: {
    title: "Octomesh",
    version: "v1",
    description: "Control plane for on-device ML fleets and browser-session verdicts. Generated from `proto/`.",
    license: { name: "Apache-2.0", identifier: "Apache-2.0" },
  },
  servers: [{ url: "http://localhost:8080", description: "A mesh on this machine" }],
  tags,
  paths: sortKeys(paths),
  components: {
    securitySchemes: Object.fromEntries(Object.entries(schemes).map(([kind, scheme]) => [schemeName(kind), scheme])),
    responses: {
      Problem: {
        description: "The call was refused or failed (RFC 9457).",
        headers: {
          "retry-after": { description: "Seconds to wait before trying again.", schema: { type: "integer" } },
        },
        content: { "application/problem+json": { schema: { $ref: "#/components/schemas/Problem" } } },
      },
    },
    schemas: sortKeys({ ...Object.fromEntries(schemas), ...restSchemas, Problem: problem() }),
  },
};
writeGenerated("docs/openapi.json", `${JSON.stringify(document, null, 2)}\n`);

/** The descriptors with their comments, which the generated code leaves out. */
function readDescriptors() {
  const root = fileURLToPath(new URL("../", import.meta.url));
  const buf = fileURLToPath(new URL("../node_modules/.bin/buf", import.meta.url));
  const image = execFileSync(buf, ["build", "--as-file-descriptor-set", "-o", "-#format=binpb"], {
    cwd: root,
    maxBuffer: 64 * 1024 * 1024,
  });
  return createFileRegistry(fromBinary(FileDescriptorSetSchema, image));
}

function operation(method, binding, index) {
  const policy = getOption(method, methodPolicy);
  const shape = restShapes.get(`${method.parent.name}.${method.name}`);
  const [summary = "", ...rest] = commentOf(method).split("\n\n");
  const names = pathVariables(binding.path);
  const inPath = names.map((name) => method.input.fields.find((field) => field.name === name));
  const others = method.input.fields.filter((field) => !inPath.includes(field));
  const result = {
    operationId: `${method.parent.name}_${method.name}${index === 0 ? "" : `_${index + 1}`}`,
    tags: [method.parent.name],
    summary: summary.replaceAll("\n", " "),
  };
  if (rest.length > 0) result.description = rest.join("\n\n");
  const parameters = inPath.map((field) => parameter(field, field.name, "path", true));
  if (shape !== undefined) parameters.push(...shape.query);
  else if (binding.body === "" && !policy.httpOnly)
    parameters.push(...others.flatMap((field) => queryParameters(field, "")));
  if (parameters.length > 0) result.parameters = parameters;
  const body = requestBody(method, binding, policy, inPath);
  if (body !== undefined) result.requestBody = body;
  result.responses = {
    ...(shape?.responses ?? (policy.httpOnly ? bytesResponses(binding) : jsonResponse(method))),
    default: { $ref: "#/components/responses/Problem" },
  };
  result.security = security(policy);
  result["x-octomesh-surface"] = Surface[policy.surface].toLowerCase();
  if (policy.role !== Role.UNSPECIFIED) result["x-octomesh-role"] = Role[policy.role].toLowerCase();
  if (policy.audit !== "") result["x-octomesh-audit"] = policy.audit;
  if (policy.auditExemption !== AuditExemption.UNSPECIFIED) {
    result["x-octomesh-audit-exemption"] = AuditExemption[policy.auditExemption].toLowerCase();
  }
  if (policy.feature !== PlanFeature.UNSPECIFIED) {
    result["x-octomesh-plan-feature"] = PlanFeature[policy.feature].toLowerCase();
  }
  return result;
}

function security(policy) {
  return policy.callers.flatMap((kind) => {
    if (kind === CallerKind.PUBLIC) return [{}];
    const name = CallerKind[kind];
    if (!(name in schemes)) return [];
    const scoped = kind === CallerKind.API_KEY || kind === CallerKind.READ_TOKEN;
    return [{ [schemeName(name)]: scoped && policy.scope !== Scope.UNSPECIFIED ? [scopeNames.get(policy.scope)] : [] }];
  });
}

function schemeName(kind) {
  return kind.toLowerCase();
}

function requestBody(method, binding, policy, inPath) {
  if (policy.httpOnly && ["PATCH", "PUT", "POST"].includes(binding.verb)) {
    const schema = { type: "string", format: "binary" };
    return { required: true, content: { "application/offset+octet-stream": { schema } } };
  }
  if (binding.body === "" || policy.httpOnly) return undefined;
  if (binding.body !== "*") {
    const field = method.input.fields.find(({ name }) => name === binding.body);
    return { required: isRequired(field), content: { "application/json": { schema: fieldSchema(field) } } };
  }
  const schema = inPath.length === 0 ? reference(method.input) : objectSchema(method.input, inPath);
  const required = method.input.fields.some((field) => !inPath.includes(field) && isRequired(field));
  return { required, content: { "application/json": { schema } } };
}

function jsonResponse(method) {
  if (method.output.typeName === "google.protobuf.Empty") {
    return {
      200: { description: "Done.", content: { "application/json": { schema: { type: "object", maxProperties: 0 } } } },
    };
  }
  const schema = reference(method.output);
  return { 200: { description: commentOf(method.output), content: { "application/json": { schema } } } };
}

/** Uploads and downloads are plain HTTP: the comments of the methods say how. */
function bytesResponses(binding) {
  if (binding.verb !== "GET") {
    const headers = { "upload-offset": { description: "How many bytes are there.", schema: { type: "integer" } } };
    return { 204: { description: "The chunk is stored.", headers } };
  }
  const content = { "application/octet-stream": { schema: { type: "string", format: "binary" } } };
  const headers = { etag: { description: "Digest of the whole.", schema: { type: "string" } } };
  return {
    200: { description: "All bytes.", headers, content },
    206: { description: "The range that was asked for.", headers, content },
  };
}

/** A message that is a query parameter is spread: `filter.model_id`. */
function queryParameters(field, prefix) {
  const name = `${prefix}${field.name}`;
  if (field.fieldKind === "message" && !wellKnown.has(field.message.typeName)) {
    return field.message.fields.flatMap((inner) => queryParameters(inner, `${name}.`));
  }
  return [parameter(field, name, "query", prefix === "" && isRequired(field))];
}

function parameter(field, name, place, required) {
  const { description, ...schema } = fieldSchema(field);
  return { name, in: place, required, description: description ?? commentOf(field), schema };
}

function reference(message) {
  const name = message.typeName.replace(/^octomesh\./, "");
  if (!schemas.has(name)) {
    schemas.set(name, undefined);
    schemas.set(name, objectSchema(message, []));
  }
  return { $ref: `#/components/schemas/${name}` };
}

function objectSchema(message, without) {
  const fields = message.fields.filter((field) => !without.includes(field));
  const required = fields.filter(isRequired).map(({ name }) => name);
  const schema = { type: "object", description: commentOf(message) };
  if (required.length > 0) schema.required = required;
  schema.properties = Object.fromEntries(fields.map((field) => [field.name, fieldSchema(field)]));
  schema.additionalProperties = false;
  return schema;
}

function fieldSchema(field) {
  const rules = rulesOf(field);
  const schema = typeSchema(field, rules);
  const choice = field.oneof === undefined ? "" : ` One of the fields of \`${field.oneof.name}\`.`;
  const description = commentOf(field) + choice;
  if (description !== "") schema.description = description;
  if (hasOption(field, data_class) && getOption(field, data_class) === DataClass.SECRET) schema.format ??= "password";
  return schema;
}

function typeSchema(field, rules) {
  switch (field.fieldKind) {
    case "message":
      return messageSchema(field.message, rules);
    case "enum":
      return enumSchema(field.enum, rules);
    case "list": {
      const inner = rules?.type.case === "repeated" ? rules.type.value : undefined;
      const items =
        field.listKind === "scalar"
          ? scalarSchema(field.scalar, inner?.items)
          : field.listKind === "enum"
            ? enumSchema(field.enum, inner?.items)
            : messageSchema(field.message, inner?.items);
      const schema = { type: "array", items };
      if (inner?.minItems) schema.minItems = Number(inner.minItems);
      if (inner?.maxItems) schema.maxItems = Number(inner.maxItems);
      if (inner?.unique) schema.uniqueItems = true;
      return schema;
    }
    case "map": {
      const inner = rules?.type.case === "map" ? rules.type.value : undefined;
      const values =
        field.mapKind === "scalar"
          ? scalarSchema(field.scalar, inner?.values)
          : field.mapKind === "enum"
            ? enumSchema(field.enum, inner?.values)
            : messageSchema(field.message, inner?.values);
      const schema = { type: "object", additionalProperties: values };
      if (inner?.maxPairs) schema.maxProperties = Number(inner.maxPairs);
      if (inner?.keys !== undefined) schema.propertyNames = scalarSchema(field.mapKey, inner.keys);
      return schema;
    }
    default:
      return scalarSchema(field.scalar, rules);
  }
}

function wellKnownSchema(typeName) {
  switch (typeName) {
    case "google.protobuf.Timestamp":
      return { type: "string", format: "date-time" };
    case "google.protobuf.Duration":
      return { type: "string", pattern: "^-?[0-9]+(\\.[0-9]{1,9})?s$", examples: ["3.5s"] };
    default:
      return { type: "object" };
  }
}

function messageSchema(message, rules) {
  if (!wellKnown.has(message.typeName)) return reference(message);
  const schema = wellKnownSchema(message.typeName);
  if (rules?.type.case === "duration") {
    const { greaterThan, lessThan } = rules.type.value;
    if (greaterThan?.case === "gte") schema["x-minimum"] = `${greaterThan.value.seconds}s`;
    if (lessThan?.case === "lte") schema["x-maximum"] = `${lessThan.value.seconds}s`;
  }
  return schema;
}

function enumSchema(desc, rules) {
  const name = desc.typeName.replace(/^octomesh\./, "");
  if (!schemas.has(name)) {
    schemas.set(name, {
      type: "string",
      description: commentOf(desc),
      enum: desc.values.map((value) => value.name),
    });
  }
  const schema = { $ref: `#/components/schemas/${name}` };
  const excluded = rules?.type.case === "enum" ? rules.type.value.notIn : [];
  if (excluded.length > 0) {
    schema.not = { enum: desc.values.filter(({ number }) => excluded.includes(number)).map((value) => value.name) };
  }
  return schema;
}

function scalarSchema(scalar, rules) {
  const { value } = rules?.type ?? {};
  switch (scalar) {
    case ScalarType.STRING:
      return stringSchema(value);
    case ScalarType.BYTES: {
      const schema = { type: "string", contentEncoding: "base64" };
      const longest = value?.len || value?.maxLen;
      if (longest) schema.maxLength = Math.ceil(Number(longest) / 3) * 4;
      return schema;
    }
    case ScalarType.BOOL:
      return { type: "boolean" };
    case ScalarType.DOUBLE:
    case ScalarType.FLOAT:
      return { type: "number", format: "double", ...bounds(value) };
    case ScalarType.INT32:
    case ScalarType.SINT32:
    case ScalarType.SFIXED32:
      return { type: "integer", format: "int32", ...bounds(value) };
    case ScalarType.UINT32:
    case ScalarType.FIXED32:
      return { type: "integer", format: "int64", minimum: 0, maximum: 4_294_967_295, ...bounds(value) };
    default: {
      // 64-bit numbers are text in JSON, for many readers would round them.
      const { minimum, maximum } = bounds(value);
      const schema = { type: "string", format: "int64", pattern: minimum === 0 ? "^[0-9]{1,19}$" : "^-?[0-9]{1,19}$" };
      if (minimum !== undefined) schema["x-minimum"] = String(minimum);
      if (maximum !== undefined) schema["x-maximum"] = String(maximum);
      return schema;
    }
  }
}

function stringSchema(rules) {
  const schema = { type: "string" };
  if (rules === undefined || rules.$typeName !== StringRulesSchema.typeName) return schema;
  if (rules.len || rules.minLen) schema.minLength = Number(rules.len || rules.minLen);
  if (rules.len || rules.maxLen) schema.maxLength = Number(rules.len || rules.maxLen);
  if (rules.pattern) schema.pattern = rules.pattern;
  if (rules.in.length > 0) schema.enum = [...rules.in];
  if (rules.wellKnown.case === "email") schema.format = "email";
  if (rules.wellKnown.case === "uri") schema.format = "uri";
  return schema;
}

function bounds(rules) {
  const found = {};
  if (rules?.greaterThan?.case === "gte") found.minimum = Number(rules.greaterThan.value);
  if (rules?.greaterThan?.case === "gt") found.exclusiveMinimum = Number(rules.greaterThan.value);
  if (rules?.lessThan?.case === "lte") found.maximum = Number(rules.lessThan.value);
  if (rules?.lessThan?.case === "lt") found.exclusiveMaximum = Number(rules.lessThan.value);
  return found;
}

/** A field whose default its own rules refuse. */
function isRequired(field) {
  const rules = rulesOf(field);
  if (rules === undefined) return false;
  if (rules.required) return true;
  if (field.proto.proto3Optional || field.oneof !== undefined) return false;
  const { case: kind, value } = rules.type;
  if (kind === "string") {
    return value.minLen > 0n || value.len > 0n || (value.pattern !== "" && !new RegExp(value.pattern, "u").test(""));
  }
  if (kind === "bytes") return value.minLen > 0n || value.len > 0n;
  if (kind === "repeated") return value.minItems > 0n;
  if (kind === "enum") return value.notIn.includes(0);
  if (kind === "int32" || kind === "int64" || kind === "double") {
    const { case: comparison, value: least } = value.greaterThan;
    return (comparison === "gte" && Number(least) > 0) || (comparison === "gt" && Number(least) >= 0);
  }
  return false;
}

function rulesOf(field) {
  return hasOption(field, fieldRules) ? getOption(field, fieldRules) : undefined;
}

function commentOf(desc) {
  return (getComments(desc).leading ?? "")
    .split("\n")
    .map((line) => line.replace(/^ /, "").trimEnd())
    .join("\n")
    .trim();
}

function problem() {
  return {
    type: "object",
    description: "Why a call was refused or failed.",
    required: ["type", "title", "status", "detail", "code", "request_id"],
    properties: {
      type: { type: "string", description: "Always `about:blank`." },
      title: { type: "string", description: "The reason in words." },
      status: { type: "integer", description: "The HTTP status." },
      detail: { type: "string", description: "What went wrong, for people." },
      code: { type: "string", description: "The reason, for programs.", enum: reasons() },
      request_id: { type: "string", description: "Id of the request, as in the header `x-request-id`." },
      metadata: { type: "object", additionalProperties: { type: "string" }, description: "Facts of the reason." },
      retry_after_seconds: { type: "integer", description: "When trying again makes sense." },
      violations: {
        type: "array",
        description: "Fields that are outside their bounds.",
        items: { type: "object", properties: { field: { type: "string" }, message: { type: "string" } } },
      },
    },
  };
}

function reasons() {
  return registry
    .getEnum("octomesh.errors.v1.Reason")
    .values.filter(({ number }) => number !== 0)
    .map(({ name }) => name.replace(/^REASON_/, ""));
}

function sortKeys(object) {
  return Object.fromEntries(Object.entries(object).sort(([a], [b]) => (a < b ? -1 : 1)));
}

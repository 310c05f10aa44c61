import {
  create,
  type DescField,
  type DescMessage,
  type DescMethod,
  getOption,
  hasOption,
  type JsonObject,
  type JsonValue,
  ScalarType,
} from "@bufbuild/protobuf";
import { http as httpOption } from "@octomesh/proto/google/api/annotations_pb";
import type { HttpRule } from "@octomesh/proto/google/api/http_pb";
import { fail, Reason } from "./errors.ts";

/** One binding of an rpc method to an HTTP verb and path. */
export interface RestBinding {
  readonly method: DescMethod;
  /** Upper-case verb. */
  readonly verb: string;
  /** Path template, such as `/api/v1/models/{id}`. */
  readonly template: string;
  /** `*`: the body is the request; "" : there is none; else the name of the field that it is. */
  readonly body: string;
  /** The field of the answer that is the body; "" for the whole. */
  readonly responseBody: string;
}

/** A binding that a request's verb and path fit, and what the path's variables are. */
export interface RestMatch {
  readonly binding: RestBinding;
  readonly params: Record<string, string>;
}

/** Finds the binding of a request. */
export interface RestRouter {
  /** `undefined` where no path fits, or where its variables are no valid percent-encoding; `allow` tells which. */
  match(verb: string, path: string): RestMatch | undefined;
  /** Verbs that a path has bindings for. */
  allow(path: string): readonly string[];
}

/** The bindings of a method: its `google.api.http` option and the option's additional bindings. */
export function bindingsOf(method: DescMethod): RestBinding[] {
  if (!hasOption(method, httpOption)) return [];
  const rule = getOption(method, httpOption);
  return [rule, ...rule.additionalBindings].flatMap((each) => bindingOf(method, each));
}

function bindingOf(method: DescMethod, rule: HttpRule): RestBinding[] {
  const { pattern } = rule;
  if (pattern.case === undefined) return [];
  const [verb, template] =
    pattern.case === "custom" ? [pattern.value.kind, pattern.value.path] : [pattern.case.toUpperCase(), pattern.value];
  return [{ method, verb, template, body: rule.body, responseBody: rule.responseBody }];
}

interface CompiledBinding {
  readonly binding: RestBinding;
  readonly pattern: RegExp;
  readonly names: readonly string[];
  /** Literal characters of the template: of two templates that fit, the more literal one wins. */
  readonly weight: number;
}

const maxPathLength = 2048;

/**
 * Compiles bindings into a router. Throws where two bindings have the same verb and the same shape of path, and where a
 * template has a variable that is no field of the request, or is of a form that is not understood.
 */
export function createRestRouter(bindings: readonly RestBinding[]): RestRouter {
  const compiled = bindings.map(compile).sort((a, b) => b.weight - a.weight);
  const shapes = new Map<string, string>();
  for (const { binding, pattern } of compiled) {
    const shape = `${binding.verb} ${pattern.source}`;
    const other = shapes.get(shape);
    if (other !== undefined) throw new Error(`${binding.template} is bound twice: ${other}, ${binding.method.name}`);
    shapes.set(shape, binding.method.name);
  }
  const byVerb = groupByVerb(compiled);
  return {
    match(verb, path) {
      if (path.length > maxPathLength) return undefined;
      for (const { binding, pattern, names } of byVerb.get(verb) ?? []) {
        const found = pattern.exec(path);
        if (found === null) continue;
        const params: Record<string, string> = Object.create(null);
        for (const [index, name] of names.entries()) {
          const value = decode(found[index + 1] ?? "");
          if (value === undefined) return undefined;
          params[name] = value;
        }
        return { binding, params };
      }
      return undefined;
    },
    allow(path) {
      if (path.length > maxPathLength) return [];
      return [...new Set(compiled.filter(({ pattern }) => pattern.test(path)).map(({ binding }) => binding.verb))];
    },
  };
}

function groupByVerb(compiled: readonly CompiledBinding[]): Map<string, CompiledBinding[]> {
  const groups = new Map<string, CompiledBinding[]>();
  for (const each of compiled) {
    const group = groups.get(each.binding.verb);
    if (group === undefined) groups.set(each.binding.verb, [each]);
    else group.push(each);
  }
  return groups;
}

/** `{name}` fits one segment without `:`, so that `/{id}:verb` works; `{name=**}` is not used by our contract. */
function compile(binding: RestBinding): CompiledBinding {
  const names: string[] = [];
  let weight = 0;
  const source = binding.template
    .split(/(\{[a-z_.]+\})/)
    .map((part) => {
      const variable = /^\{([a-z_.]+)\}$/.exec(part);
      if (variable?.[1] === undefined) {
        if (/[{}]/.test(part)) throw new Error(`${binding.template} is a template of a form that is not understood`);
        weight += part.length;
        return part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
      }
      if (!hasField(binding.method.input, variable[1].split("."))) {
        throw new Error(`${binding.template} names ${variable[1]}, which is no field of its request`);
      }
      names.push(variable[1]);
      return "([^/:]+)";
    })
    .join("");
  return { binding, pattern: new RegExp(`^${source}$`), names, weight };
}

function hasField(message: DescMessage, path: readonly string[]): boolean {
  const field = message.fields.find((each) => each.name === path[0]);
  if (field === undefined || path.length === 1) return field !== undefined;
  return field.fieldKind === "message" && hasField(field.message, path.slice(1));
}

function decode(segment: string): string | undefined {
  try {
    return decodeURIComponent(segment);
  } catch {
    return undefined;
  }
}

/**
 * Builds the JSON of an rpc request from a REST request: body, then query, then path, each winning over the one before.
 * Unknown query parameters are refused (REQUEST_MALFORMED), so that a misspelt filter does not silently list all; so are
 * query parameters where the whole request is the body.
 */
export function toRequestJson(
  binding: RestBinding,
  params: Record<string, string>,
  query: URLSearchParams,
  body: JsonValue | undefined,
): JsonObject {
  const input = binding.method.input;
  let json: JsonObject = {};
  if (binding.body === "*" && body !== undefined) {
    if (typeof body !== "object" || body === null || Array.isArray(body)) {
      throw fail(Reason.REQUEST_MALFORMED, "the body must be a JSON object", {});
    }
    json = { ...body };
  } else if (binding.body !== "" && body !== undefined) {
    json[binding.body] = body;
  }
  if (binding.body === "*" && query.size > 0) {
    throw fail(Reason.REQUEST_MALFORMED, "the parameters of this method go into the body", {});
  }
  if (query.size > 100) throw fail(Reason.REQUEST_MALFORMED, "there are too many query parameters", {});
  for (const [path, value] of query) setField(json, input, path.split("."), value, path);
  for (const [path, value] of Object.entries(params)) setField(json, input, path.split("."), value, path);
  return json;
}

function setField(json: JsonObject, message: DescMessage, path: readonly string[], value: string, whole: string): void {
  const [name, ...rest] = path;
  const field = message.fields.find((each) => each.name === name || each.jsonName === name);
  if (field === undefined || name === undefined) {
    throw fail(Reason.REQUEST_MALFORMED, `there is no parameter ${whole.slice(0, 64)}`, {
      parameter: whole.slice(0, 64),
    });
  }
  if (rest.length > 0) {
    if (field.fieldKind !== "message") throw fail(Reason.REQUEST_MALFORMED, `${whole.slice(0, 64)} has no parts`, {});
    const inner = Object.hasOwn(json, field.name) ? json[field.name] : undefined;
    const nested: JsonObject = typeof inner === "object" && inner !== null && !Array.isArray(inner) ? inner : {};
    json[field.name] = nested;
    setField(nested, field.message, rest, value, whole);
    return;
  }
  if (field.fieldKind === "list") {
    const list = json[field.name];
    json[field.name] = [...(Array.isArray(list) ? list : []), scalarJson(field, value)];
    return;
  }
  json[field.name] = scalarJson(field, value);
}

/** Query values are text; ProtoJSON takes numbers and enum names as text, but not booleans. */
function scalarJson(field: DescField, value: string): JsonValue {
  const isBoolean =
    (field.fieldKind === "scalar" && field.scalar === ScalarType.BOOL) ||
    (field.fieldKind === "list" && field.listKind === "scalar" && field.scalar === ScalarType.BOOL);
  if (isBoolean) {
    if (value === "true" || value === "1" || value === "") return true;
    if (value === "false" || value === "0") return false;
    throw fail(Reason.REQUEST_MALFORMED, `${field.name} must be true or false`, { parameter: field.name });
  }
  return value;
}

/** An empty request message of a method with the path's variables set, for policies that look at fields. */
export function messageOfParams(method: DescMethod, params: Record<string, string>): Record<string, unknown> {
  const message = create(method.input) as unknown as Record<string, unknown>;
  for (const [name, value] of Object.entries(params)) {
    const field = method.input.fields.find((each) => each.name === name);
    if (field !== undefined) message[field.localName] = value;
  }
  return message;
}

/** The path's variables as they stand in a message that policy has looked at, which fills in what `-` stands for. */
export function paramsOfMessage(
  method: DescMethod,
  message: Record<string, unknown>,
  params: Record<string, string>,
): Record<string, string> {
  const filled: Record<string, string> = Object.create(null);
  for (const [name, value] of Object.entries(params)) {
    const field = method.input.fields.find((each) => each.name === name);
    filled[name] = field === undefined ? value : String(message[field.localName]);
  }
  return filled;
}

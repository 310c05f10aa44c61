import { fromJson } from "@bufbuild/protobuf";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import {
  CreateModelVersionRequestSchema,
  ModelVersionService,
} from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { TelemetryService } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { contractServices } from "./contract.ts";
import { Reason, reasonOf } from "./errors.ts";
import {
  bindingsOf,
  createRestRouter,
  messageOfParams,
  paramsOfMessage,
  type RestBinding,
  toRequestJson,
} from "./rest.ts";

const all = contractServices.flatMap((service) => service.methods).flatMap(bindingsOf);
const router = createRestRouter(all);

function only(bindings: readonly RestBinding[]): RestBinding {
  const [first] = bindings;
  if (first === undefined) throw new Error("the method has no binding");
  return first;
}

const createVersion = only(bindingsOf(ModelVersionService.method.createModelVersion));
const listModels = only(bindingsOf(ModelService.method.listModels));

/** A segment as any client may spell it: every character that needs it, and any other, percent-encoded. */
const segment = fc.string({ unit: "grapheme", minLength: 1, maxLength: 40 });

function refusal(work: () => unknown): Reason | undefined {
  try {
    work();
  } catch (error) {
    return reasonOf(error);
  }
  throw new Error("it was not refused");
}

describe("the router", () => {
  test("finds every binding of the contract by its own path, with its variables decoded", () => {
    fc.assert(
      fc.property(fc.constantFrom(...all), fc.array(segment, { minLength: 4, maxLength: 4 }), (binding, values) => {
        let index = 0;
        const expected: Record<string, string> = {};
        const path = binding.template.replace(/\{([a-z_.]+)\}/g, (_, name: string) => {
          const value = values[index++] ?? "x";
          expected[name] = value;
          return encodeURIComponent(value);
        });
        const match = router.match(binding.verb, path);
        // A value may spell a longer literal, as `register` does for {id}: then the more literal template wins.
        if (match?.binding.template !== binding.template) {
          expect(match?.binding.template.length).toBeGreaterThan(0);
          return;
        }
        expect({ ...match.params }).toEqual(expected);
        expect(router.allow(path)).toContain(binding.verb);
      }),
    );
  });

  test("never throws, and finds nothing for paths that it does not have", () => {
    fc.assert(
      fc.property(fc.webPath(), fc.constantFrom("GET", "POST", "__proto__", ""), (path, verb) => {
        const match = router.match(verb, path);
        expect(match === undefined || path.startsWith("/")).toBe(true);
      }),
    );
    expect(router.match("GET", "/api/v1/models/")).toBeUndefined();
    expect(router.match("GET", "/api/v1/models/a/b")).toBeUndefined();
    expect(router.match("GET", "/api/v1/modelsX")).toBeUndefined();
    expect(router.match("GET", `/api/v1/models/${"x".repeat(5000)}`)).toBeUndefined();
  });

  test("takes an encoded slash or colon for a part of the variable, and refuses broken encodings", () => {
    expect(router.match("GET", "/api/v1/models/a%2Fb%3Ac")?.params.id).toBe("a/b:c");
    expect(router.match("GET", "/api/v1/models/%zz")).toBeUndefined();
    expect(router.match("GET", "/api/v1/models/%c3%28")).toBeUndefined();
    expect(router.allow("/api/v1/models/%zz")).toContain("GET");
  });

  test("a custom verb is no part of the id", () => {
    expect(router.match("POST", "/api/v1/rollouts/rol_x:pause")?.binding.method.name).toBe("PauseRollout");
    expect(router.match("POST", "/api/v1/rollouts/rol_x:nothing")).toBeUndefined();
    expect(router.match("GET", "/api/v1/devices:countVersions")?.binding.method.name).toBe("CountObservedVersions");
  });

  test("refuses, at start, a path that is bound twice, and a template that it does not understand", () => {
    expect(() => createRestRouter([listModels, { ...listModels }])).toThrow(/bound twice/);
    const get = only(bindingsOf(ModelService.method.getModel));
    expect(() => createRestRouter([get, { ...get, template: "/api/v1/models/{name=models/*}" }])).toThrow(/understood/);
    expect(() => createRestRouter([{ ...get, template: "/api/v1/models/{ident}" }])).toThrow(/no field/);
  });
});

describe("the request", () => {
  test("no body overrides the path, whatever its spelling", () => {
    fc.assert(
      fc.property(
        fc.dictionary(fc.constantFrom("model_id", "modelId", "version", "description"), fc.string({ maxLength: 8 })),
        (body) => {
          const json = toRequestJson(createVersion, { model_id: "path" }, new URLSearchParams(), body);
          let modelId: string | undefined;
          try {
            modelId = fromJson(CreateModelVersionRequestSchema, json, { ignoreUnknownFields: true }).modelId;
          } catch {
            // Both spellings at once: refused.
          }
          expect([undefined, "path"]).toContain(modelId);
        },
      ),
    );
  });

  test("no query overrides the path", () => {
    const get = only(bindingsOf(ModelService.method.getModel));
    const json = toRequestJson(get, { id: "path" }, new URLSearchParams("id=query&id=again"), undefined);
    expect(json).toEqual({ id: "path" });
  });

  test("a query parameter that nobody knows is refused, and so is one beside a body that is the whole request", () => {
    const query = (text: string) => () => toRequestJson(listModels, {}, new URLSearchParams(text), undefined);
    for (const text of ["no_such=1", "__proto__=1", "constructor=1", "page_size.x=1", "toString=1"]) {
      expect(refusal(query(text))).toBe(Reason.REQUEST_MALFORMED);
    }
    expect(refusal(query(Array.from({ length: 101 }, () => "page_size=1").join("&")))).toBe(Reason.REQUEST_MALFORMED);
    expect(refusal(() => toRequestJson(createVersion, { model_id: "m" }, new URLSearchParams("version=1"), {}))).toBe(
      Reason.REQUEST_MALFORMED,
    );
  });

  test("a body that is no object is refused", () => {
    for (const body of [[], "text", 1, null, true]) {
      expect(refusal(() => toRequestJson(createVersion, {}, new URLSearchParams(), body))).toBe(
        Reason.REQUEST_MALFORMED,
      );
    }
  });

  test("nothing in a body or query reaches a prototype", () => {
    const body = JSON.parse('{"__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}}}');
    toRequestJson(createVersion, { model_id: "m" }, new URLSearchParams(), body);
    expect(({} as { polluted?: boolean }).polluted).toBeUndefined();
    expect(Object.getPrototypeOf(router.match("GET", "/api/v1/models/x")?.params)).toBeNull();
  });

  test("parts of messages have dots, and booleans have words", () => {
    const health = only(bindingsOf(TelemetryService.method.listHealthAggregates));
    const ask = (text: string) => toRequestJson(health, {}, new URLSearchParams(text), undefined);
    expect(ask("page_size=5&pageToken=x&filter.by_slice=true&filter.model_id=mdl_x")).toEqual({
      page_size: "5",
      page_token: "x",
      filter: { by_slice: true, model_id: "mdl_x" },
    });
    expect(ask("filter.by_slice=0")).toEqual({ filter: { by_slice: false } });
    expect(refusal(() => ask("filter.by_slice=maybe"))).toBe(Reason.REQUEST_MALFORMED);
    expect(refusal(() => ask("filter.nothing=1"))).toBe(Reason.REQUEST_MALFORMED);
  });
});

test("what policy fills in for `-` reaches the variables of a path", () => {
  const method = ModelService.method.getModel;
  const message = messageOfParams(method, { id: "-" });
  message.id = "filled";
  expect({ ...paramsOfMessage(method, message, { id: "-" }) }).toEqual({ id: "filled" });
});

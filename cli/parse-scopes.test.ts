import { Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { describe, expect, test } from "vitest";
import { allScopes, parseScopes, scopeName } from "./parse-scopes.ts";

describe("parseScopes", () => {
  test("reads the list of the documentation", () => {
    expect(parseScopes("models:read,models:write,rollouts:write")).toEqual([
      Scope.MODELS_READ,
      Scope.MODELS_WRITE,
      Scope.ROLLOUTS_WRITE,
    ]);
  });

  test("allows spaces and folds repetitions", () => {
    expect(parseScopes(" devices:enroll , devices:enroll,devices:read ")).toEqual([
      Scope.DEVICES_ENROLL,
      Scope.DEVICES_READ,
    ]);
  });

  test("names the scope that it does not know", () => {
    expect(() => parseScopes("models:read,models:admin")).toThrow('there is no scope "models:admin"');
  });

  test("refuses an empty list", () => {
    expect(() => parseScopes(" , ")).toThrow("no scope is given");
  });

  test("knows every scope of the contract by a name and a meaning, and reads it back", () => {
    expect(allScopes()).toHaveLength(Object.values(Scope).filter((value) => typeof value === "number").length - 1);
    for (const { scope, name, meaning } of allScopes()) {
      expect(parseScopes(name)).toEqual([scope]);
      expect(scopeName(scope)).toBe(name);
      expect(meaning).not.toBe("");
    }
  });
});

import { Device_State, Device_StateSchema } from "@octomesh/proto/octomesh/device/v1/device_pb";
import { Role, RoleSchema } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { Rollout_StateSchema } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { describe, expect, test } from "vitest";
import { choicesOf, choiceWord, parseChoice } from "./parse-choice.ts";

describe("parseChoice", () => {
  test("reads the words that people use", () => {
    expect(parseChoice(RoleSchema, "role", "admin")).toBe(Role.ADMIN);
    expect(parseChoice(Device_StateSchema, "state", "Awaiting_Approval")).toBe(Device_State.AWAITING_APPROVAL);
  });

  test("lists the words where one is not known", () => {
    expect(() => parseChoice(RoleSchema, "role", "root")).toThrow('"root" is not a role');
  });

  test("does not take the unspecified value for a choice", () => {
    expect(() => parseChoice(RoleSchema, "role", "unspecified")).toThrow();
  });

  test("writes every state of a rollout and reads it back", () => {
    for (const [word, value] of choicesOf(Rollout_StateSchema)) {
      expect(choiceWord(Rollout_StateSchema, value)).toBe(word);
      expect(word).toMatch(/^[a-z-]+$/);
    }
  });

  test("says that it does not know a value that is newer than the program", () => {
    expect(choiceWord(RoleSchema, 99)).toBe("unknown(99)");
  });
});

import { describe, expect, test } from "vitest";
import { checkId, isIdOf } from "./check-id.ts";
import { CommandError } from "./command-error.ts";
import { exitCode } from "./exit-code.ts";

const id = `key_${"a2".repeat(13)}`;

describe("checkId", () => {
  test("takes an id of its kind, with blanks around it", () => {
    expect(checkId("key", ` ${id}\n`)).toBe(id);
    expect(isIdOf("key", id)).toBe(true);
  });

  test.each(["", "key_", "key_…", "key_x", `dev_${"a".repeat(26)}`, `${id}a`, `key_${"A".repeat(26)}`])(
    "refuses %j in words, with exit code 2 and no pattern",
    (text) => {
      const error = thrownBy(() => checkId("key", text));
      expect(error.code).toBe(exitCode.usage);
      expect(`${error.message} ${error.hint}`).toContain("an id such as key_…");
      expect(`${error.message} ${error.hint}`).not.toMatch(/[\^$]|\[a-z/);
    },
  );

  test.each(["lic", "pky", "ecr", "esk", "rdt"] as const)("knows edges' credentials: %s_…", (prefix) => {
    const own = `${prefix}_${"a2".repeat(13)}`;
    expect(checkId(prefix, own)).toBe(own);
    expect(isIdOf(prefix, id)).toBe(false);
  });

  test("names the kind", () => {
    expect(thrownBy(() => checkId("rol", "1")).message).toBe('"1" is not the id of a rollout');
    expect(thrownBy(() => checkId("key", "1")).message).toBe('"1" is not the id of an API key');
    expect(thrownBy(() => checkId("lic", id)).message).toBe(`"${id}" is not the id of a licence`);
  });
});

function thrownBy(run: () => unknown): CommandError {
  try {
    run();
  } catch (error) {
    if (error instanceof CommandError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

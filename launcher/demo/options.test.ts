import { describe, expect, test } from "vitest";
import { withoutSecrets } from "./narrator.ts";
import { commandLine } from "./octomil-process.ts";
import { readDemoOptions } from "./options.ts";

describe("the demonstration's arguments", () => {
  test("default to a mesh of its own and 200 devices", () => {
    expect(readDemoOptions([])).toEqual({
      url: undefined,
      code: undefined,
      devices: 200,
      processes: false,
      keep: false,
      help: false,
    });
  });

  test.each([
    [["--devices", "29"]],
    [["--devices", "many"]],
    [["--url", "http://localhost:8080"]],
    [["--code", "edg_setup_x"]],
    [["--url", "http://localhost:8080", "--code", "x", "--processes"]],
    [["--unknown"]],
  ])("refuse %j", (argv) => {
    expect(() => readDemoOptions(argv)).toThrow();
  });
});

test("command lines are shown as a person types them", () => {
  expect(commandLine(["setup", "--org", "Acme Robotics", "--scopes", "a:b,c:d"])).toBe(
    'octomil setup --org "Acme Robotics" --scopes a:b,c:d',
  );
});

test("credentials are shortened wherever they are shown", () => {
  expect(withoutSecrets("--code edg_setup_AccMKJ6jcaeqUkiZDKWsOg3DhmAZ and edg_live_QaQK…")).toBe(
    "--code edg_setup_AccM… and edg_live_QaQK…",
  );
});

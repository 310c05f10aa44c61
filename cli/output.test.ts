import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ApiKey_State, ApiKeySchema } from "@octomesh/proto/octomesh/identity/v1/api_key_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { describe, expect, test } from "vitest";
import { openOutput } from "./output.ts";
import { fakeTerminal } from "./testing/fake-terminal.ts";

const key = create(ApiKeySchema, {
  id: "key_a",
  orgId: "org_a",
  name: "ci-pipeline",
  prefix: "edg_live_QaQK",
  scopes: [Scope.MODELS_READ],
  environment: Environment.LIVE,
  state: ApiKey_State.ACTIVE,
  createTime: timestampFromMs(Date.UTC(2026, 1, 3, 4, 5, 6)),
});
const other = create(ApiKeySchema, { id: "key_b", name: "nightly" });
const columns = [
  { title: "ID", value: (item: typeof key) => item.id },
  { title: "SCOPES", value: (item: typeof key) => String(item.scopes.length), align: "right" as const },
  { title: "NAME", value: (item: typeof key) => item.name },
];
const list = { schema: ApiKeySchema, key: "api_keys", items: [key, other], columns, empty: "No API keys yet." };

describe("a list", () => {
  test("is a table for people", () => {
    const terminal = fakeTerminal();
    openOutput(terminal).list(list);
    expect(terminal.stdout()).toBe(
      ["ID     SCOPES  NAME", "key_a       1  ci-pipeline", "key_b       0  nightly", ""].join("\n"),
    );
  });

  test("says so where there is nothing", () => {
    const terminal = fakeTerminal();
    openOutput(terminal).list({ ...list, items: [] });
    expect(terminal.stdout()).toBe("No API keys yet.\n");
  });

  test("is one JSON document for programs, with the contract's names, every field, and no secret that is not there", () => {
    const terminal = fakeTerminal();
    openOutput(terminal, { json: true }).list({ ...list, items: [key], truncated: true });
    expect(JSON.parse(terminal.stdout())).toEqual({
      api_keys: [
        {
          id: "key_a",
          org_id: "org_a",
          name: "ci-pipeline",
          prefix: "edg_live_QaQK",
          scopes: ["SCOPE_MODELS_READ"],
          environment: "ENVIRONMENT_LIVE",
          state: "STATE_ACTIVE",
          create_time: "2026-02-03T04:05:06Z",
        },
      ],
      truncated: true,
    });
  });

  test("is the ids alone with --quiet", () => {
    const terminal = fakeTerminal();
    openOutput(terminal, { quiet: true }).list(list);
    expect(terminal.stdout()).toBe("key_a\nkey_b\n");
  });
});

describe("one resource", () => {
  const show = {
    schema: ApiKeySchema,
    item: key,
    headline: "It is made.",
    facts: [
      ["id", "key_a"],
      ["expires", ""],
      ["environment", "live"],
    ] as const,
  };

  test("is its facts for people, the empty ones left out", () => {
    const terminal = fakeTerminal();
    openOutput(terminal).show(show);
    expect(terminal.stdout()).toBe("It is made.\n  id           key_a\n  environment  live\n");
  });

  test("is the essential value alone with --quiet, and JSON wins over it", () => {
    const quiet = fakeTerminal();
    openOutput(quiet, { quiet: true }).show({ ...show, essential: "edg_live_secret" });
    expect(quiet.stdout()).toBe("edg_live_secret\n");
    const both = fakeTerminal();
    openOutput(both, { quiet: true, json: true }).show(show);
    expect(JSON.parse(both.stdout())).toMatchObject({ id: "key_a" });
  });
});

describe("colours", () => {
  test("are for screens only", () => {
    const screen = fakeTerminal({ outIsTty: true });
    openOutput(screen).list({ ...list, items: [] });
    expect(screen.stdout()).toBe("\u001b[2mNo API keys yet.\u001b[22m\n");
  });

  test.each([
    ["NO_COLOR is set", { env: { NO_COLOR: "1" } }, {}],
    ["the terminal is dumb", { env: { TERM: "dumb" } }, {}],
    ["--no-color is given", {}, { color: false }],
  ])("are off where %s", (_why, terminalOptions, outputOptions) => {
    const screen = fakeTerminal({ outIsTty: true, ...terminalOptions });
    openOutput(screen, outputOptions).list({ ...list, items: [] });
    expect(screen.stdout()).toBe("No API keys yet.\n");
  });
});

test("notes go to standard error and are off with --quiet; warnings are not", () => {
  const terminal = fakeTerminal();
  const output = openOutput(terminal, { quiet: true });
  output.note("by the way");
  output.warn("careful");
  expect(terminal.stdout()).toBe("");
  expect(terminal.stderr()).toBe("careful\n");
});

import fc from "fast-check";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import type { Call } from "./call.ts";
import type { Caller, CallerKind } from "./caller.ts";
import { formatDelegation, parseDelegation } from "./delegation.ts";
import { newId } from "./ids.ts";
import { createSystemCall } from "./system-call.ts";

const log = pino({ level: "silent" });
const orgId = newId("org");

function callOf(caller: Partial<Caller>): Call {
  const base = createSystemCall("rollout", orgId, undefined, log);
  return { ...base, caller: { ...base.caller, orgId, ...caller } };
}

const kind = fc.constantFrom<CallerKind>(
  "session",
  "api_key",
  "device",
  "bootstrap",
  "partner",
  "read_token",
  "system",
);
const address = fc.oneof(fc.ipV4(), fc.ipV6(), fc.constant(""));

describe("a delegation", () => {
  test("says at the sibling what it said here", () => {
    fc.assert(
      fc.property(kind, fc.stringMatching(/^[\w-]{1,64}$/), fc.nat(5), address, (kind, id, plan, address) => {
        const value = formatDelegation(callOf({ kind, id, plan, address }));
        expect(parseDelegation(value)).toEqual({ orgId, kind, id, plan, address });
        expect(value.length).toBeLessThan(1024);
        expect(value).toMatch(/^[\w-]+$/);
      }),
    );
  });

  test("is passed on by the next service as that of the first caller", () => {
    const device = newId("dev");
    const call = callOf({
      kind: "delegated",
      id: "telemetry",
      peer: "telemetry",
      delegate: { kind: "device", id: device },
    });
    expect(parseDelegation(formatDelegation(call))).toMatchObject({ kind: "device", id: device, orgId });
  });

  test("needs someone to act for, in an organisation", () => {
    expect(() => formatDelegation(callOf({ kind: "peer", id: "rollout" }))).toThrow();
    expect(() => formatDelegation(callOf({ kind: "public", id: "" }))).toThrow();
    expect(() => formatDelegation({ ...callOf({ kind: "api_key", id: "key_x" }), orgId: "" })).toThrow();
  });

  test("that is malformed is none", () => {
    const good = [orgId, "device", newId("dev"), 1, "127.0.0.1"];
    const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
    expect(parseDelegation(encode(good))).toBeDefined();
    const bad: unknown[] = [
      good.slice(1),
      [...good, "more"],
      { ...good },
      null,
      ["org_x", ...good.slice(1)],
      [orgId, "peer", ...good.slice(2)],
      [orgId, "public", ...good.slice(2)],
      [orgId, "delegated", ...good.slice(2)],
      [orgId, "toString", ...good.slice(2)],
      [orgId, "device", "", 1, "127.0.0.1"],
      [orgId, "device", "x".repeat(65), 1, "127.0.0.1"],
      [orgId, "device", "dev\nx", 1, "127.0.0.1"],
      [orgId, "device", "dev_x", 1.5, "127.0.0.1"],
      [orgId, "device", "dev_x", -1, "127.0.0.1"],
      [orgId, "device", "dev_x", "1", "127.0.0.1"],
      [orgId, "device", "dev_x", 1, "localhost"],
      [orgId, "device", "dev_x", 1, "127.0.0.1, 10.0.0.1"],
    ];
    for (const value of bad) expect(parseDelegation(encode(value)), JSON.stringify(value)).toBeUndefined();
    expect(parseDelegation(`${encode(good)}${"A".repeat(2000)}`)).toBeUndefined();
  });

  test("never throws, whatever the header holds", () => {
    fc.assert(fc.property(fc.string({ maxLength: 1200 }), (value) => parseDelegation(value) === undefined));
    fc.assert(
      fc.property(fc.json(), (json) => {
        const parsed = parseDelegation(Buffer.from(json).toString("base64url"));
        expect(parsed === undefined || parsed.orgId.startsWith("org_")).toBe(true);
      }),
    );
  });
});

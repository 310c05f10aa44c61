import { describe, expect, it } from "vitest";
import { deviceChange } from "./device-change.ts";
import { type DeviceFacts, openDeviceFacts } from "./device-facts.ts";

const active: DeviceFacts = { state: "active", groupIds: [] };
const revoked: DeviceFacts = { state: "revoked", groupIds: [] };

describe("the facts of devices", () => {
  it("are read once until they change", async () => {
    const loads: string[][] = [];
    const facts = openDeviceFacts({
      async load(_, ids) {
        loads.push([...ids]);
        return new Map(ids.filter((id) => id !== "none").map((id) => [id, active]));
      },
    });
    expect(await facts.get("org", ["a", "none"])).toEqual(new Map([["a", active]]));
    await facts.get("org", ["a", "b"]);
    facts.forget("org", deviceChange(["a"]));
    await facts.get("org", ["a", "b"]);
    facts.forget("org", deviceChange(undefined));
    await facts.get("org", ["a", "b"]);
    await facts.get("other", ["a"]);
    facts.forget("other", deviceChange(undefined));
    await facts.get("org", ["a"]);
    expect(loads).toEqual([["a", "none"], ["b"], ["a"], ["a", "b"], ["a"]]);
  });

  it("that were read while they changed are read again", async () => {
    let answer: (facts: Map<string, DeviceFacts>) => void = () => {};
    const facts = openDeviceFacts({ load: () => new Promise((resolve) => (answer = resolve)) });
    const before = facts.get("org", ["a"]);
    facts.forget("org", deviceChange(["a"]));
    answer(new Map([["a", active]]));
    await before;
    const after = facts.get("org", ["a"]);
    answer(new Map([["a", revoked]]));
    expect(await after).toEqual(new Map([["a", revoked]]));
  });
});

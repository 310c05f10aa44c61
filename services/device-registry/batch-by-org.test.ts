import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { describe, expect, it } from "vitest";
import { batchByOrg } from "./batch-by-org.ts";

describe("batches of questions", () => {
  it("are of one organisation, bounded, and ask about each device once", async () => {
    const runs: [string, number][] = [];
    const batches = batchByOrg({
      maxItems: 3,
      async run(orgId, deviceIds) {
        runs.push([orgId, deviceIds.length]);
        return new Map(deviceIds.map((id) => [id, `${orgId}/${id}`]));
      },
    });
    const asked = ["a", "b", "a", "c", "d"].map((id) => batches.ask("one", id));
    const answers = await Promise.all([...asked, batches.ask("two", "a")]);
    expect(answers).toEqual(["one/a", "one/b", "one/a", "one/c", "one/d", "two/a"]);
    expect(runs).toEqual([
      ["one", 3],
      ["one", 1],
      ["two", 1],
    ]);
  });

  it("fail together, and only together", async () => {
    const batches = batchByOrg<string>({
      async run(orgId, deviceIds) {
        if (orgId === "bad") throw new Error("away");
        return new Map(deviceIds.map((id) => [id, id]));
      },
    });
    const [first, second, third] = await Promise.allSettled([
      batches.ask("bad", "a"),
      batches.ask("bad", "b"),
      batches.ask("good", "a"),
    ]);
    expect([first?.status, second?.status, third?.status]).toEqual(["rejected", "rejected", "fulfilled"]);
  });

  it("fail for a device that the answer leaves out", async () => {
    const batches = batchByOrg<string>({ run: async () => new Map([["a", "a"]]) });
    const [a, b] = await Promise.allSettled([batches.ask("one", "a"), batches.ask("one", "b")]);
    expect([a?.status, b?.status]).toEqual(["fulfilled", "rejected"]);
  });

  it("refuse what they cannot hold, and have room again afterwards", async () => {
    const batches = batchByOrg({ maxPending: 1, run: async (_, ids) => new Map(ids.map((id) => [id, id])) });
    const first = batches.ask("one", "a");
    const refused = await batches.ask("one", "b").catch((error: unknown) => reasonOf(error));
    expect(refused).toBe(Reason.OVERLOADED);
    await first;
    await expect(batches.ask("one", "b")).resolves.toBe("b");
  });
});

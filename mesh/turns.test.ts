import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Reason, reasonOf } from "./errors.ts";
import { createTurns } from "./turns.ts";

/** Work that ends when it is told to. */
function works() {
  const started: string[] = [];
  const endings: { name: string; end: () => void }[] = [];
  const work = (name: string) => () => {
    started.push(name);
    return new Promise<string>((resolve) => endings.push({ name, end: () => resolve(name) }));
  };
  const end = async (name: string): Promise<void> => {
    const index = endings.findIndex((each) => each.name === name);
    endings.splice(index, 1)[0]?.end();
    await new Promise((resolve) => setImmediate(resolve));
  };
  return { started, endings, work, end };
}

describe("turns", () => {
  it("leave room for others, however much one owner asks for", async () => {
    const { started, work, end } = works();
    const turns = createTurns({ total: 3, perOwner: 2, maxWaiting: 10 });
    for (const name of ["a1", "a2", "a3", "a4"]) void turns.take("a", work(name));
    void turns.take("b", work("b1"));
    void turns.take("b", work("b2"));
    expect(started).toEqual(["a1", "a2", "b1"]);
    await end("a1");
    await end("a2");
    await end("b1");
    expect(started).toEqual(["a1", "a2", "b1", "a3", "b2", "a4"]);
  });

  it("are refused where too much of an owner's waits, and are free again after work that failed", async () => {
    const { work, end } = works();
    const turns = createTurns({ total: 2, perOwner: 1, maxWaiting: 1 });
    const failed = turns.take("a", () => Promise.reject(new Error("no")));
    await expect(failed).rejects.toThrow("no");
    const first = turns.take("a", work("1"));
    const second = turns.take("a", work("2"));
    const third = await turns.take("a", work("3")).catch((error: unknown) => error);
    expect(reasonOf(third)).toBe(Reason.OVERLOADED);
    await end("1");
    await end("2");
    expect(await Promise.all([first, second])).toEqual(["1", "2"]);
  });

  it("all come, within both limits, in whatever order works end", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.constantFrom("a", "b", "c"), { maxLength: 30 }),
        fc.infiniteStream(fc.nat()),
        async (owners, choices) => {
          const { started, endings, work, end } = works();
          const turns = createTurns({ total: 3, perOwner: 2, maxWaiting: 100 });
          const done = owners.map((owner, index) => turns.take(owner, work(`${owner}${index}`)));
          while (endings.length > 0) {
            expect(endings.length).toBeLessThanOrEqual(3);
            for (const owner of ["a", "b", "c"]) {
              expect(endings.filter(({ name }) => name.startsWith(owner)).length).toBeLessThanOrEqual(2);
            }
            const choice: number = choices.next().value ?? 0;
            await end(endings[choice % endings.length]?.name ?? "");
          }
          await Promise.all(done);
          expect(started).toHaveLength(owners.length);
        },
      ),
      { numRuns: 50 },
    );
  });
});

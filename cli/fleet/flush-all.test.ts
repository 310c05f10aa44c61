import { describe, expect, test } from "vitest";
import { flushAll } from "./flush-all.ts";

describe("flushAll", () => {
  test("flushes every device, a bounded number at a time, and survives those that fail", async () => {
    let running = 0;
    let most = 0;
    const flushed: number[] = [];
    const devices = Array.from({ length: 20 }, (_, index) => ({
      async flush() {
        running += 1;
        most = Math.max(most, running);
        await new Promise((resolve) => setImmediate(resolve));
        running -= 1;
        if (index === 3) throw new Error("the mesh is away");
        flushed.push(index);
      },
    }));
    await flushAll(devices, 5_000, 4);
    expect(flushed).toHaveLength(19);
    expect(most).toBe(4);
  });

  test("gives up when the time is over, and begins no other then", async () => {
    let begun = 0;
    const stuck = { flush: () => new Promise<void>(() => void begun++) };
    await flushAll([stuck, stuck, stuck], 20, 2);
    expect(begun).toBe(2);
  });

  test("is done at once where there is nothing", async () => {
    await flushAll([], 60_000);
  });
});

import { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createMemoryWindows, createRedisWindows } from "./sliding-window.ts";
import { reasonToSkipRedis, startTestRedis, type TestRedis } from "./test/redis-fixture.ts";
import { slidingWindowSuite } from "./test/sliding-window.suite.ts";

const startMs = 1_750_000_000_000;

describe("sliding windows in memory", () => {
  slidingWindowSuite(() => {
    const clock = { ms: startMs };
    return { windows: createMemoryWindows(() => clock.ms), others: [], clock };
  }, 300);

  it("hold a bounded number of keys", async () => {
    const windows = createMemoryWindows(() => startMs, 100);
    const limit = { points: 1, windowMs: 1000 };
    for (let i = 0; i < 1000; i += 1) await windows.take(`key-${i}`, limit, 1);
    expect((await windows.take("key-999", limit, 1)).allowed).toBe(false);
    expect((await windows.take("key-0", limit, 1)).allowed).toBe(true);
  });
});

const skip = reasonToSkipRedis();
if (skip !== undefined) console.warn(`sliding windows on Redis are not tested: ${skip}`);

describe.skipIf(skip !== undefined)("sliding windows on Redis", () => {
  let server: TestRedis;
  let replicas: Redis[];

  beforeAll(async () => {
    server = await startTestRedis();
    replicas = [1, 2, 3].map(() => new Redis(server.url));
  });

  afterAll(async () => {
    for (const redis of replicas ?? []) redis.disconnect();
    await server?.stop();
  });

  slidingWindowSuite(() => {
    const clock = { ms: startMs };
    const [windows, ...others] = replicas.map((redis) => createRedisWindows(redis, () => clock.ms));
    return { windows: windows!, others, clock };
  }, 20);

  it("keep Redis's own time where none is given, and leave nothing behind", async () => {
    const [redis] = replicas as [Redis];
    await redis.flushall();
    const windows = createRedisWindows(redis);
    const limit = { points: 2, windowMs: 300 };
    expect((await windows.take("198.51.100.7", limit, 2)).allowed).toBe(true);
    const refused = await windows.take("198.51.100.7", limit, 1);
    expect(refused.allowed).toBe(false);
    expect(refused.retryAfterMs).toBeGreaterThan(0);
    expect(refused.retryAfterMs).toBeLessThanOrEqual(310);
    const names = await redis.keys("*");
    expect(names).toHaveLength(1);
    expect(names[0]).not.toContain("198.51.100.7");
    await expect.poll(() => redis.keys("*")).toEqual([]);
    expect((await windows.take("198.51.100.7", limit, 2)).allowed).toBe(true);
  });

  it("survive a Redis that forgot the script", async () => {
    const [redis] = replicas as [Redis];
    await redis.script("FLUSH");
    const windows = createRedisWindows(redis);
    expect((await windows.take("again", { points: 1, windowMs: 1000 }, 1)).allowed).toBe(true);
  });
});

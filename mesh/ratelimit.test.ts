import { pino } from "pino";
import { Registry } from "prom-client";
import { afterEach, describe, expect, it } from "vitest";
import { systemClock } from "./clock.ts";
import { createRateLimiter, type RateLimiter } from "./ratelimit.ts";
import { reasonToSkipRedis, startTestRedis, type TestRedis } from "./test/redis-fixture.ts";

const log = pino({ level: "silent" });
const limits = { registration: { points: 10, windowMs: 60_000 }, inference: { points: 20, windowMs: 60_000 } };
const closers: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

function opened(limiter: RateLimiter): RateLimiter {
  closers.push(() => limiter.close());
  return limiter;
}

async function countAllowed(takes: Promise<{ allowed: boolean }>[]): Promise<number> {
  return (await Promise.all(takes)).filter(({ allowed }) => allowed).length;
}

describe("a rate limiter in memory", () => {
  it("says what is left, and when to try again", async () => {
    const limiter = opened(createRateLimiter({ limits, clock: { now: () => 1_750_000_000_000 }, log }));
    expect(await limiter.take("registration", "a", 7)).toEqual({
      allowed: true,
      limit: 10,
      remaining: 3,
      resetMs: 62_000,
      retryAfterMs: 0,
    });
    expect(await limiter.take("registration", "a", 4)).toEqual({
      allowed: false,
      limit: 10,
      remaining: 3,
      resetMs: 62_000,
      retryAfterMs: 62_000,
    });
  });

  it("counts surfaces apart, and knows no others", async () => {
    const limiter = opened(createRateLimiter({ limits, clock: systemClock, log }));
    expect(await countAllowed(Array.from({ length: 15 }, () => limiter.take("registration", "a")))).toBe(10);
    expect(await countAllowed(Array.from({ length: 25 }, () => limiter.take("inference", "a")))).toBe(20);
    await expect(limiter.take("other", "a")).rejects.toThrow("no rate limit is configured for other");
    await expect(limiter.take("constructor", "a")).rejects.toThrow("no rate limit is configured for constructor");
  });

  it("counts what it refused", async () => {
    const metrics = new Registry();
    const limiter = opened(createRateLimiter({ limits, clock: systemClock, log, metrics }));
    await countAllowed(Array.from({ length: 12 }, () => limiter.take("registration", "a")));
    expect(await metrics.metrics()).toContain('octomesh_rate_limited_total{surface="registration"} 2');
  });
});

const skip = reasonToSkipRedis();
if (skip !== undefined) console.warn(`the rate limiter on Redis is not tested: ${skip}`);

describe.skipIf(skip !== undefined)("a rate limiter on Redis", () => {
  async function start(port?: number): Promise<TestRedis & { port: number }> {
    const server = await startTestRedis(port);
    closers.push(() => server.stop());
    return server;
  }

  async function replica(redisUrl: string): Promise<{ limiter: RateLimiter; degraded(): Promise<number | undefined> }> {
    const metrics = new Registry();
    const limiter = opened(createRateLimiter({ limits, redisUrl, clock: systemClock, log, metrics }));
    const degraded = async () =>
      (await metrics.getSingleMetric("octomesh_rate_limit_degraded")?.get())?.values[0]?.value;
    return { limiter, degraded };
  }

  it("lets all replicas together have the limit once", async () => {
    const { url } = await start();
    const replicas = await Promise.all([1, 2, 3, 4].map(() => replica(url)));
    for (const { degraded } of replicas) await expect.poll(degraded).toBe(0);
    const takes = Array.from({ length: 80 }, (_, i) => replicas[i % 4]!.limiter.take("registration", "one"));
    expect(await countAllowed(takes)).toBe(10);
  });

  it("counts in memory while Redis is away, says so, and goes back when it returns", async () => {
    const server = await start();
    const { limiter, degraded } = await replica(server.url);
    await expect.poll(degraded).toBe(0);
    expect(await countAllowed(Array.from({ length: 12 }, () => limiter.take("registration", "one")))).toBe(10);
    await server.stop();
    await expect.poll(degraded).toBe(1);
    expect(await countAllowed(Array.from({ length: 12 }, () => limiter.take("registration", "one")))).toBe(10);
    await start(server.port);
    await expect.poll(degraded, { timeout: 10_000 }).toBe(0);
    expect(await countAllowed(Array.from({ length: 12 }, () => limiter.take("registration", "one")))).toBe(10);
  });

  it("does not wait for a Redis that does not answer", async () => {
    const server = await start();
    const { limiter, degraded } = await replica(server.url);
    await expect.poll(degraded).toBe(0);
    server.hold(true);
    expect(await countAllowed(Array.from({ length: 12 }, () => limiter.take("registration", "two")))).toBe(10);
    expect(await degraded()).toBe(1);
    server.hold(false);
    const degradedNow = async () => {
      await limiter.take("inference", "two", 0);
      return degraded();
    };
    await expect.poll(degradedNow, { timeout: 10_000 }).toBe(0);
  });

  it("is degraded from the start where there is no Redis", async () => {
    const server = await start();
    await server.stop();
    const { limiter, degraded } = await replica(server.url);
    expect(await countAllowed(Array.from({ length: 12 }, () => limiter.take("registration", "a")))).toBe(10);
    expect(await degraded()).toBe(1);
  });
});

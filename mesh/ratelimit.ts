import { Redis } from "ioredis";
import type { Logger } from "pino";
import { Counter, Gauge, type Registry } from "prom-client";
import { type Clock, systemClock } from "./clock.ts";
import {
  createMemoryWindows,
  createRedisWindows,
  type Limit,
  type SlidingWindows,
  type Take,
} from "./sliding-window.ts";

export type { Limit } from "./sliding-window.ts";

/** What a limit said. */
export interface RateLimitResult {
  readonly allowed: boolean;
  readonly limit: number;
  readonly remaining: number;
  /** Until the whole limit is free again if nothing more is taken. */
  readonly resetMs: number;
  /** When to try again; 0 where the call was allowed. */
  readonly retryAfterMs: number;
}

/** Counts what keys take of a surface's limit. */
export interface RateLimiter {
  /**
   * Takes points (1 by default), or says when there will be some; a refused take counts nothing. With 0 points it only
   * looks whether 1 would be allowed. Never fails for want of Redis. Throws for a surface without a limit.
   */
  take(surface: string, key: string, points?: number): Promise<RateLimitResult>;
  close(): Promise<void>;
}

/** What the limiter needs. */
export interface RateLimiterOptions {
  readonly limits: Readonly<Record<string, Limit>>;
  /** `redis://` or `rediss://`; counters are this process's memory if not given. */
  readonly redisUrl?: string;
  /** With a clock other than the system's, which is a test's, Redis is told the time instead of using its own. */
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics?: Registry;
}

/** How long Redis may take for an answer before memory counts instead. */
const answerTimeoutMs = 250;
/** How long after a failure Redis is left alone, so that calls do not all wait for it. */
const restMs = 1000;

/**
 * Opens a limiter with sliding windows (`sliding-window.ts`): exact in memory, and exact over all replicas on Redis.
 * With Redis away each replica's memory applies the whole limit, and `octomesh_rate_limit_degraded` is 1.
 *
 * The windows are our own: rate-limiter-flexible counts in fixed windows, in which a caller gets twice its limit around
 * the end of one, and two weighted fixed windows still let half as much again through a burst at the end of the first.
 */
export function createRateLimiter(options: RateLimiterOptions): RateLimiter {
  const { clock } = options;
  const memory = createMemoryWindows(() => clock.now());
  const redis = options.redisUrl === undefined ? undefined : connect(options.redisUrl, options);
  const refused = options.metrics && refusedCounter(options.metrics);

  return {
    async take(surface, key, points = 1) {
      const limit = Object.hasOwn(options.limits, surface) ? options.limits[surface] : undefined;
      if (limit === undefined) throw new Error(`no rate limit is configured for ${surface}`);
      const name = `${surface}:${key}`;
      const take = (await redis?.take(name, limit, points)) ?? (await memory.take(name, limit, points));
      if (!take.allowed) refused?.inc({ surface });
      return {
        allowed: take.allowed,
        limit: limit.points,
        remaining: Math.max(0, limit.points - take.taken),
        resetMs: take.resetMs,
        retryAfterMs: take.retryAfterMs,
      };
    },
    async close() {
      redis?.close();
    },
  };
}

/** Redis as long as it answers; undefined while it does not. */
interface InsuredRedis {
  take(...take: Parameters<SlidingWindows["take"]>): Promise<Take | undefined>;
  close(): void;
}

function connect(url: string, { log, clock, metrics }: RateLimiterOptions): InsuredRedis {
  const redis = new Redis(url, {
    enableOfflineQueue: false,
    enableAutoPipelining: true,
    maxRetriesPerRequest: 0,
    connectTimeout: 2000,
    commandTimeout: answerTimeoutMs,
    retryStrategy: (attempt) => Math.min(2000, 50 * 2 ** Math.min(attempt, 6)),
  });
  const windows = createRedisWindows(redis, clock === systemClock ? undefined : () => clock.now());
  const degraded = metrics && degradedGauge(metrics);
  // Until the first connection is there, memory counts, which is as it should be and needs no warning.
  degraded?.set(1);
  let isAway = false;
  let restUntil = 0;
  const away = (error: unknown): void => {
    if (!isAway) log.warn({ err: error }, "redis is away: rate limits count in this replica's memory");
    isAway = true;
    degraded?.set(1);
  };
  const back = (): void => {
    if (isAway) log.info("redis is back: rate limits count over all replicas");
    isAway = false;
    degraded?.set(0);
  };
  redis.on("error", away);
  redis.on("ready", () => {
    restUntil = 0;
    back();
  });
  return {
    async take(...take) {
      if (redis.status !== "ready" || performance.now() < restUntil) return undefined;
      try {
        const result = await windows.take(...take);
        back();
        return result;
      } catch (error) {
        restUntil = performance.now() + restMs;
        away(error);
        return undefined;
      }
    },
    close: () => redis.disconnect(),
  };
}

function degradedGauge(registry: Registry): Gauge {
  return new Gauge({
    name: "octomesh_rate_limit_degraded",
    help: "1 while rate limits count in this replica's memory because Redis is away",
    registers: [registry],
  });
}

function refusedCounter(registry: Registry): Counter<"surface"> {
  return new Counter({
    name: "octomesh_rate_limited_total",
    help: "Takes that a rate limit refused, by surface",
    labelNames: ["surface"],
    registers: [registry],
  });
}

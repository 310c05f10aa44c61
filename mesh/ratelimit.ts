import { Redis } from "ioredis";
import type { Logger } from "pino";
import { Gauge, type Registry } from "prom-client";
import { RateLimiterMemory, RateLimiterRedis } from "rate-limiter-flexible";
import type { Clock } from "./clock.ts";

/** How many points a key may take in any window. */
export interface Limit {
  readonly points: number;
  readonly windowMs: number;
}

/** What a limit said. */
export interface RateLimitResult {
  readonly allowed: boolean;
  readonly limit: number;
  readonly remaining: number;
  /** Until the whole limit is free again. */
  readonly resetMs: number;
  /** When to try again; 0 where the call was allowed. */
  readonly retryAfterMs: number;
}

/** Counts what keys take of a surface's limit. */
export interface RateLimiter {
  /** Takes points (1 by default), or says when there will be some. With 0 points it only looks. */
  take(surface: string, key: string, points?: number): Promise<RateLimitResult>;
  close(): Promise<void>;
}

/** What the limiter needs. */
export interface RateLimiterOptions {
  readonly limits: Readonly<Record<string, Limit>>;
  /** `redis://` or `rediss://`; counters are this process's memory if not given. */
  readonly redisUrl?: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics?: Registry;
}

type Counter = RateLimiterMemory | RateLimiterRedis;

/**
 * Opens a limiter with sliding windows: a key's count is what it took in the current window of the clock, plus what it
 * took in the one before, weighted by how much of that is still within reach. A call counts itself before it is judged
 * and gives its points back if it is refused, so N replicas on one Redis accept no more than one would. With Redis away
 * each replica counts in its own memory, and `octomesh_rate_limit_degraded` is 1.
 *
 * The weighting assumes that calls of the window before were spread evenly; the error is a few percent of the limit.
 */
export function createRateLimiter(options: RateLimiterOptions): RateLimiter {
  const { clock, log } = options;
  const degraded = options.metrics && degradedGauge(options.metrics);
  const redis =
    options.redisUrl === undefined ? undefined : connect(options.redisUrl, log, (away) => degraded?.set(away));
  const counters = new Map<string, Counter>();
  for (const [surface, { windowMs }] of Object.entries(options.limits)) {
    // Two windows' life, so that the window before is there to be looked at; the limit itself is applied here.
    const shape = {
      points: Number.MAX_SAFE_INTEGER,
      duration: Math.ceil((2 * windowMs) / 1000),
      keyPrefix: `limit:${surface}`,
    };
    const memory = new RateLimiterMemory(shape);
    counters.set(
      surface,
      redis === undefined ? memory : new RateLimiterRedis({ ...shape, storeClient: redis, insuranceLimiter: memory }),
    );
  }

  return {
    async take(surface, key, points = 1) {
      const limit = options.limits[surface];
      const counter = counters.get(surface);
      if (limit === undefined || counter === undefined) throw new Error(`no rate limit is configured for ${surface}`);
      const now = clock.now();
      const window = Math.floor(now / limit.windowMs);
      const passed = (now % limit.windowMs) / limit.windowMs;
      const [before, current] = await Promise.all([
        counter.get(`${key}:${window - 1}`),
        points === 0 ? counter.get(`${key}:${window}`) : counter.penalty(`${key}:${window}`, points),
      ]);
      const taken = { before: before?.consumedPoints ?? 0, current: current?.consumedPoints ?? 0 };
      const counted = taken.current + taken.before * (1 - passed);
      const allowed = points === 0 ? counted < limit.points : counted <= limit.points;
      if (!allowed && points > 0) {
        await counter.reward(`${key}:${window}`, points);
        taken.current -= points;
      }
      const estimate = taken.current + taken.before * (1 - passed);
      return {
        allowed,
        limit: limit.points,
        remaining: Math.max(0, Math.floor(limit.points - estimate)),
        resetMs: limit.windowMs * (taken.current > 0 ? 2 - passed : 1 - passed),
        retryAfterMs: allowed ? 0 : waitFor(limit, taken, passed, Math.max(1, points)),
      };
    },
    async close() {
      redis?.disconnect();
    },
  };
}

/** How long until `points` more fit: in this window, as the one before fades, or in the next, as this one does. */
export function waitFor(
  limit: Limit,
  taken: { before: number; current: number },
  passed: number,
  points: number,
): number {
  const room = limit.points - points - taken.current;
  if (room >= 0 && taken.before > 0) {
    const needed = 1 - room / taken.before;
    if (needed <= 1) return Math.max(1, Math.ceil((needed - passed) * limit.windowMs));
  }
  const intoNext = taken.current === 0 ? 0 : Math.max(0, 1 - (limit.points - points) / taken.current);
  return Math.max(1, Math.ceil((1 - passed + intoNext) * limit.windowMs));
}

function connect(url: string, log: Logger, onAway: (away: 0 | 1) => void): Redis {
  const redis = new Redis(url, {
    enableOfflineQueue: false,
    maxRetriesPerRequest: 1,
    connectTimeout: 2000,
    commandTimeout: 500,
    retryStrategy: (attempt) => Math.min(2000, 50 * 2 ** Math.min(attempt, 6)),
  });
  let isAway = false;
  redis.on("error", (error) => {
    if (!isAway) log.warn({ err: error }, "redis is away: rate limits count in memory");
    isAway = true;
    onAway(1);
  });
  redis.on("ready", () => {
    if (isAway) log.info("redis is back");
    isAway = false;
    onAway(0);
  });
  return redis;
}

function degradedGauge(registry: Registry): Gauge {
  return new Gauge({
    name: "octomesh_rate_limit_degraded",
    help: "1 while rate limits count in this replica's memory because Redis is away",
    registers: [registry],
  });
}

import { createHash } from "node:crypto";
import type { Clock } from "@octomesh/mesh/clock";
import { fail, Reason } from "@octomesh/mesh/errors";
import { Redis } from "ioredis";
import type { Logger } from "pino";
import {
  digestOfNonce,
  type ReportOutcome,
  type SessionKey,
  type SessionLimits,
  type SessionStore,
} from "./session-store.ts";
import { createWaiters } from "./waiters.ts";

const answerTimeoutMs = 1_000;
const startTimeoutMs = 30_000;
const channel = "octomesh:verdict:decided";
const eraseBatch = 500;

/**
 * Keys of every script: the session, its verdict, and the organisation's index, which orders the digests of its sessions
 * by the time at which they are over. All are in one slot of a cluster, the organisation's.
 */
const register = script(
  "register",
  `
local now, nonce, expires, remember, max, member = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local known = redis.call('HMGET', KEYS[1], 'nonce', 'created', 'expires', 'bundle', 'registered')
if known[3] then
  if tonumber(known[3]) <= now or known[5] ~= '1' or known[1] ~= nonce then return { 'taken' } end
  return { known[4] and 'ready' or 'collecting', known[2], known[3] }
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now - remember))
if redis.call('ZCOUNT', KEYS[3], '(' .. ARGV[1], '+inf') >= max then return { 'organization_full' } end
redis.call('HSET', KEYS[1], 'nonce', nonce, 'created', ARGV[1], 'expires', ARGV[3], 'registered', '1')
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', expires - now + remember))
redis.call('ZADD', KEYS[3], ARGV[3], member)
redis.call('PEXPIRE', KEYS[3], string.format('%.0f', math.max(redis.call('PTTL', KEYS[3]), expires - now + remember)))
return { 'collecting', ARGV[1], ARGV[3] }
`,
);

/** Without a verdict it only says what it would do. */
const decide = script(
  "decide",
  `
local now, nonce, expires, remember, max, member = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local bundle, verdict, evidence, channel, wanted = ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local nonced = '0'
local known = redis.call('HMGET', KEYS[1], 'nonce', 'expires', 'bundle')
if known[2] then
  if tonumber(known[2]) <= now then return { 'expired', '0' } end
  if known[1] ~= '' then nonced = '1' end
  if known[3] then return { known[3] == bundle and 'duplicate' or 'reported', nonced } end
  if known[1] ~= '' and known[1] ~= nonce then return { 'nonce_mismatch', nonced } end
else
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now - remember))
  if redis.call('ZCOUNT', KEYS[3], '(' .. ARGV[1], '+inf') >= max then return { 'organization_full', nonced } end
end
if not verdict then return { 'open', nonced } end
if wanted ~= nonced then return { 'changed', nonced } end
if not known[2] then redis.call('HSET', KEYS[1], 'nonce', '', 'created', ARGV[1], 'registered', '0') end
redis.call('HSET', KEYS[1], 'expires', ARGV[3], 'bundle', bundle)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', expires - now + remember))
redis.call('HSET', KEYS[2], 'verdict', verdict, 'evidence', evidence)
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', math.max(1, expires - now)))
redis.call('ZADD', KEYS[3], ARGV[3], member)
redis.call('PEXPIRE', KEYS[3], string.format('%.0f', math.max(redis.call('PTTL', KEYS[3]), expires - now + remember)))
redis.call('PUBLISH', channel, member)
return { 'open', nonced }
`,
);

const read = script(
  "read",
  `
local known = redis.call('HMGET', KEYS[1], 'expires', 'bundle')
local stored = redis.call('HMGET', KEYS[2], 'verdict', 'evidence')
return { known[1], known[2], stored[1], stored[2] }
`,
);

/**
 * Opens sessions on Redis, which all replicas share. Keys hold digests of references. Waits up to 30 s for Redis, and
 * throws where it does not come. Each call is one round trip, and rejects after a second without an answer.
 */
export async function openRedisSessions(
  url: string,
  options: { readonly limits: SessionLimits; readonly clock: Clock; readonly log: Logger },
): Promise<SessionStore & { readonly redis: Redis }> {
  const { limits, clock, log } = options;
  const waiters = createWaiters();
  const shared = {
    connectTimeout: 2000,
    retryStrategy: (attempt: number) => Math.min(2000, 50 * 2 ** Math.min(attempt, 6)),
  };
  const redis = new Redis(url, {
    ...shared,
    enableOfflineQueue: false,
    enableAutoPipelining: true,
    maxRetriesPerRequest: 0,
    commandTimeout: answerTimeoutMs,
  });
  for (const { name, text } of [register, decide, read]) redis.defineCommand(name, { numberOfKeys: 3, lua: text });
  const subscriber = new Redis(url, { ...shared, maxRetriesPerRequest: null });
  let isAway = false;
  redis.on("error", (error) => {
    if (!isAway) log.warn({ err: error }, "redis is away: no session can be taken or read");
    isAway = true;
  });
  redis.on("ready", () => {
    if (isAway) log.info("redis is back");
    isAway = false;
  });
  subscriber.on("error", (error) => log.debug({ err: error }, "redis: the subscription is away"));
  subscriber.on("message", (_channel, member: string) => waiters.wake(member));
  // What was said meanwhile was not heard.
  subscriber.on("ready", () => void subscriber.subscribe(channel).then(waiters.wakeAll, () => undefined));
  const close = async (): Promise<void> => {
    redis.disconnect();
    subscriber.disconnect();
    waiters.wakeAll();
  };
  try {
    await Promise.all([isReady(redis), isReady(subscriber).then(() => subscriber.subscribe(channel))]);
  } catch (error) {
    await close();
    throw error;
  }

  const ask = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (error) {
      // What ioredis throws holds the command and all that it was given, which is for no log.
      const cause = error instanceof Error ? new Error(`${error.name}: ${error.message.slice(0, 64)}`) : undefined;
      const options = { retryAfterMs: 1000, cause };
      throw fail(Reason.DEPENDENCY_UNAVAILABLE, "the store of sessions does not answer", {}, options);
    }
  };
  // ioredis adds a method for each script, and one whose answers stay bytes; it sends the text where Redis has not it.
  const scripts = redis as unknown as Record<string, (...all: (string | Buffer)[]) => Promise<(Buffer | null)[]>>;
  const run = ({ name }: Script, key: SessionKey, args: readonly (string | Buffer)[]): Promise<(Buffer | null)[]> => {
    const { session, verdict, index } = keysOf(key);
    return ask(() => scripts[`${name}Buffer`]!(session, verdict, index, ...args));
  };
  const argumentsOf = (key: SessionKey, nonce: string, expireMs: number): string[] => {
    const whole = (ms: number): string => String(Math.round(ms));
    const { rememberMs, maxOfOrganization } = limits;
    const times = [whole(expireMs), whole(rememberMs)];
    return [whole(clock.now()), digestOfNonce(nonce), ...times, String(maxOfOrganization), memberOf(key)];
  };

  return {
    redis,
    async register(key, { nonce, lifetimeMs }) {
      const answer = await run(register, key, argumentsOf(key, nonce, clock.now() + lifetimeMs));
      const [outcome, created, expires] = answer.map(String);
      if (outcome === "collecting" || outcome === "ready") {
        return { outcome: "registered", state: outcome, createMs: Number(created), expireMs: Number(expires) };
      }
      return { outcome: outcome === "taken" ? "taken" : "organization_full" };
    },
    async check(key, { bundleId, nonce }) {
      const answer = await run(decide, key, [...argumentsOf(key, nonce, clock.now()), bundleId]);
      const [outcome, isNonced] = answer.map(String);
      return { outcome: outcome as ReportOutcome, isNonced: isNonced === "1" };
    },
    async decide(key, { bundleId, nonce }, { verdict, evidence, expireMs, isNonced }) {
      const given = [bundleId, Buffer.from(verdict), Buffer.from(evidence), channel, isNonced ? "1" : "0"];
      const answer = await run(decide, key, [...argumentsOf(key, nonce, expireMs), ...given]);
      return String(answer[0]) as ReportOutcome | "changed";
    },
    async read(key) {
      const answer = await run(read, key, []);
      const [expires, bundle, verdict, evidence] = answer;
      if (!expires) return { state: "unknown" };
      if (Number(expires.toString()) <= clock.now()) return { state: "expired" };
      if (!bundle) return { state: "collecting" };
      return verdict && evidence ? { state: "ready", verdict, evidence } : { state: "expired" };
    },
    watch: (key, callback) => waiters.add(memberOf(key), callback),
    erase: (orgId) =>
      ask(async () => {
        const index = indexOf(orgId);
        let erased = 0;
        for (;;) {
          const members = await redis.zrange(index, "0", String(eraseBatch - 1));
          if (members.length === 0) return erased;
          await redis.unlink(...members.flatMap((member) => namesOf(orgId, member)));
          erased += await redis.zrem(index, ...members);
        }
      }),
    count: (orgId) => ask(() => redis.zcard(indexOf(orgId))),
    held: () => undefined,
    close,
  };
}

interface Script {
  readonly name: string;
  readonly text: string;
}

function script(name: string, text: string): Script {
  return { name: `octomesh_${name}`, text };
}

/** The digest by which a session is known in Redis. */
function memberOf({ orgId, sandbox, ref }: SessionKey): string {
  const text = JSON.stringify([orgId, sandbox, ref]);
  return createHash("sha256").update(text).digest("base64url");
}

function indexOf(orgId: string): string {
  return `octomesh:verdict:{${orgId}}:index`;
}

function namesOf(orgId: string, member: string): [session: string, verdict: string] {
  return [`octomesh:verdict:{${orgId}}:session:${member}`, `octomesh:verdict:{${orgId}}:verdict:${member}`];
}

function keysOf(key: SessionKey): { session: string; verdict: string; index: string } {
  const [session, verdict] = namesOf(key.orgId, memberOf(key));
  return { session, verdict, index: indexOf(key.orgId) };
}

function isReady(redis: Redis): Promise<void> {
  if (redis.status === "ready") return Promise.resolve();
  return new Promise((resolve, reject) => {
    let last: unknown;
    const onError = (error: unknown): void => {
      last = error;
    };
    const done = (settle: () => void): void => {
      clearTimeout(timer);
      redis.off("error", onError);
      settle();
    };
    const timer = setTimeout(
      () => done(() => reject(new Error("REDIS_URL: redis does not answer", { cause: last }))),
      startTimeoutMs,
    );
    redis.on("error", onError);
    redis.once("ready", () => done(resolve));
  });
}

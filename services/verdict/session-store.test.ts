import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { reasonToSkipRedis, startTestRedis, type TestRedis } from "@octomesh/mesh/test/redis-fixture";
import { Redis } from "ioredis";
import pino from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createMemorySessions } from "./memory-sessions.ts";
import { demandNoPersistence } from "./redis-persistence.ts";
import { openRedisSessions } from "./redis-sessions.ts";
import type { SessionKey, SessionLimits } from "./session-store.ts";
import { describeSessionStore } from "./test/session-store.suite.ts";

const log = pino({ level: "silent" });
const limits: SessionLimits = { maxOfOrganization: 50_000, maxSessions: 50_000, rememberMs: 600_000 };

describe("sessions in memory", () => {
  describeSessionStore({
    open: async (given, now) => createMemorySessions(given, { now }),
    isBoundedOverall: true,
  });

  test("ten thousand sessions with verdicts take little memory", async () => {
    const store = createMemorySessions(limits, { now: () => 0 });
    const orgId = newId("org");
    const before = process.memoryUsage();
    for (let index = 0; index < 10_000; index += 1) {
      const stored = {
        verdict: new Uint8Array(2048),
        evidence: new Uint8Array(256),
        expireMs: 60_000,
        isNonced: false,
      };
      const key = { orgId, sandbox: false, ref: `session-${index}-0123456789abcdef` };
      expect(await store.decide(key, { bundleId: `bundle-${index}`, nonce: "" }, stored)).toBe("open");
    }
    const after = process.memoryUsage();
    expect(store.held()).toBe(10_000);
    const bytes = after.heapUsed - before.heapUsed + after.arrayBuffers - before.arrayBuffers;
    expect(bytes).toBeLessThan(100 * 1024 * 1024);
    await store.close();
  });

  test("what is remembered of one organisation's sessions leaves room for another's", async () => {
    let now = 0;
    const few = { maxOfOrganization: 2, maxSessions: 3, rememberMs: 600_000 };
    const store = createMemorySessions(few, { now: () => now });
    const [busy, quiet] = [newId("org"), newId("org")];
    const register = (orgId: string, ref: string) =>
      store.register({ orgId, sandbox: false, ref }, { nonce: "", lifetimeMs: 1000 });
    await register(quiet, "only");
    for (let round = 0; round < 5; round += 1) {
      now += 2000;
      for (const ref of ["a", "b"]) {
        expect(await register(busy, `${ref}-${round}`)).toMatchObject({ outcome: "registered" });
      }
    }
    expect(await store.read({ orgId: quiet, sandbox: false, ref: "only" })).toEqual({ state: "expired" });
    expect(await store.count(busy)).toBeLessThanOrEqual(4);
    await store.close();
  });
});

const skip = reasonToSkipRedis();

describe.skipIf(skip !== undefined)("sessions on Redis", () => {
  let redis: TestRedis;
  const open = (given: SessionLimits, now: () => number) =>
    openRedisSessions(redis.url, { limits: given, clock: { now }, log });

  beforeAll(async () => {
    redis = await startTestRedis();
  });
  afterAll(() => redis.stop());

  describeSessionStore({ open, openBeside: open, isBoundedOverall: false });

  test("nothing outlives its time, and no reference, nonce or signal is in Redis", async () => {
    const now = Date.now();
    const store = await open({ ...limits, rememberMs: 2000 }, () => now);
    const admin = new Redis(redis.url);
    await admin.flushall();
    const key: SessionKey = { orgId: newId("org"), sandbox: false, ref: "a-reference-of-the-partner" };
    await store.register(key, { nonce: "a-nonce-of-the-page", lifetimeMs: 1000 });
    const decided = {
      verdict: new Uint8Array([1]),
      evidence: new Uint8Array([2]),
      expireMs: now + 1000,
      isNonced: true,
    };
    await store.decide(key, { bundleId: "bundle", nonce: "a-nonce-of-the-page" }, decided);
    const keys = await admin.keys("*");
    expect(keys).toHaveLength(3);
    let dump = keys.join();
    for (const each of keys) {
      const ttlMs = await admin.pttl(each);
      expect(ttlMs).toBeGreaterThan(0);
      expect(ttlMs).toBeLessThanOrEqual(each.includes(":verdict:{") && each.includes("}:verdict:") ? 1000 : 3000);
      dump += JSON.stringify(
        (await admin.type(each)) === "hash" ? await admin.hgetall(each) : await admin.zrange(each, "0", "-1"),
      );
    }
    expect(dump).not.toContain("reference");
    expect(dump).not.toContain("nonce-of");
    admin.disconnect();
    await store.close();
  });

  test("calls are refused while Redis is away, and go on when it is back", async () => {
    const own = await startTestRedis();
    const store = await openRedisSessions(own.url, { limits, clock: { now: Date.now }, log });
    const key: SessionKey = { orgId: newId("org"), sandbox: false, ref: "a" };
    expect(await store.read(key)).toEqual({ state: "unknown" });
    own.hold(true);
    const refused = await store.read(key).catch((error: unknown) => error);
    expect(reasonOf(refused)).toBe(Reason.DEPENDENCY_UNAVAILABLE);
    own.hold(false);
    await expect.poll(() => store.read(key).catch(() => undefined)).toEqual({ state: "unknown" });
    await own.stop();
    const gone = await store.register(key, { nonce: "", lifetimeMs: 1000 }).catch((error: unknown) => error);
    expect(reasonOf(gone)).toBe(Reason.DEPENDENCY_UNAVAILABLE);
    const again = await startTestRedis(own.port);
    await expect.poll(() => store.read(key).catch(() => undefined), { timeout: 10_000 }).toEqual({ state: "unknown" });
    await store.close();
    await again.stop();
  });

  test("a Redis that writes to disk is refused, and one that does not say so needs somebody's word", async () => {
    const admin = new Redis(redis.url);
    await demandNoPersistence(admin, false);
    await admin.config("SET", "save", "60 1");
    await expect(demandNoPersistence(admin, false)).rejects.toThrow('start it with --save "" --appendonly no');
    await expect(demandNoPersistence(admin, true)).rejects.toThrow("redis writes to disk");
    await admin.config("SET", "save", "");
    await admin.config("SET", "appendonly", "yes");
    await expect(demandNoPersistence(admin, true)).rejects.toThrow("appendonly yes");
    await admin.config("SET", "appendonly", "no");
    await demandNoPersistence(admin, false);
    // A hosted Redis: this user may do everything but ask for the configuration.
    await admin.call("ACL", "SETUSER", "hosted", "on", ">secret", "~*", "&*", "+@all", "-config");
    const hosted = new Redis(redis.url.replace("redis://", "redis://hosted:secret@"));
    await expect(demandNoPersistence(hosted, false)).rejects.toThrow("OCTOMESH_VERDICT_REDIS_UNPERSISTED");
    await demandNoPersistence(hosted, true);
    hosted.disconnect();
    admin.disconnect();
  });
});

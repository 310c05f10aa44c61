import { create } from "@bufbuild/protobuf";
import { SubmitSignalsResponseSchema } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createForwardQueue, type EndOutcome, type FirstOutcome, type ForwardQueueOptions } from "./forward-queue.ts";
import type { ForwardOutcome, SignedBundle } from "./verdict-client.ts";

const accepted: ForwardOutcome = { kind: "accepted", response: create(SubmitSignalsResponseSchema, { ok: true }) };
const refused: ForwardOutcome = {
  kind: "refused",
  error: { status: 409, code: "session_reported" },
  retryAfterMs: undefined,
};
const failed: ForwardOutcome = { kind: "failed", retryAfterMs: undefined };
const away = (retryAfterMs?: number): ForwardOutcome => ({ kind: "away", retryAfterMs, problem: "ECONNREFUSED" });
const limited = (retryAfterMs?: number): ForwardOutcome => ({
  kind: "limited",
  retryAfterMs,
  error: { status: 429, code: "rate_limited" },
});

const bundleOf = (length = 10): SignedBundle => ({
  bytes: new Uint8Array(length),
  keyId: "esk",
  signature: new Uint8Array(64),
});

beforeEach(() => {
  vi.useFakeTimers();
});

afterEach(() => {
  vi.useRealTimers();
});

function open(answer: (bundle: SignedBundle) => ForwardOutcome, options: Partial<ForwardQueueOptions> = {}) {
  const ended: EndOutcome[] = [];
  const attempts: number[] = [];
  const queue = createForwardQueue({
    random: () => 0.5,
    ended: (outcome) => ended.push(outcome),
    async submit(bundle) {
      attempts.push(Date.now());
      return answer(bundle);
    },
    ...options,
  });
  return { queue, ended, attempts };
}

describe("the queue", () => {
  it("tells the first outcome, and keeps nothing that was decided", async () => {
    const outcomes = [accepted, refused];
    const { queue, ended } = open(() => outcomes.shift() ?? accepted);
    expect(await queue.add(bundleOf())?.first).toBe(accepted);
    expect(await queue.add(bundleOf())?.first).toBe(refused);
    expect([ended, queue.size, queue.bytes]).toEqual([["accepted", "refused"], 0, 0]);
  });

  it("is bounded by count and by bytes", async () => {
    const { queue } = open(() => away(), { limits: { maxBundles: 3, maxBytes: 100 } });
    expect(queue.add(bundleOf(101))).toBeUndefined();
    expect(queue.add(bundleOf(90))).toBeDefined();
    expect(queue.add(bundleOf(11))).toBeUndefined();
    expect(queue.add(bundleOf(5))).toBeDefined();
    expect(queue.add(bundleOf(5))).toBeDefined();
    expect(queue.add(bundleOf(0))).toBeUndefined();
    expect([queue.size, queue.bytes]).toEqual([3, 100]);
  });

  it("goes by one probe at a time once nobody answers, and by all as soon as somebody does", async () => {
    let isAway = true;
    let underWay = 0;
    let most = 0;
    const { queue, ended, attempts } = open(() => accepted, {
      async submit() {
        underWay += 1;
        most = Math.max(most, underWay);
        await new Promise((resolve) => setTimeout(resolve, 10));
        underWay -= 1;
        attempts.push(Date.now());
        return isAway ? away() : accepted;
      },
    });
    const firsts = Array.from({ length: 20 }, () => queue.add(bundleOf())?.first);
    await vi.advanceTimersByTimeAsync(1_000);
    expect((await Promise.all(firsts)).every((first) => first?.kind === "queued")).toBe(true);
    expect([queue.state, most]).toEqual(["away", 20]);
    most = 0;
    const before = attempts.length;
    await vi.advanceTimersByTimeAsync(20_000);
    expect(most).toBe(1);
    expect(attempts.length - before).toBeGreaterThan(5);
    expect(attempts.length - before).toBeLessThan(40);
    expect(await queue.add(bundleOf())?.first).toEqual({ kind: "queued" });
    isAway = false;
    await vi.advanceTimersByTimeAsync(3_000);
    expect([ended.length, queue.size, queue.state]).toEqual([21, 0, "flowing"]);
  });

  it("probes with a bundle that comes, though those that wait may not go for long", async () => {
    let isAway = true;
    const { queue } = open(() => (isAway ? away(60_000) : accepted));
    for (let i = 0; i < 5; i += 1) await queue.add(bundleOf())?.first;
    await vi.advanceTimersByTimeAsync(10);
    expect(queue.state).toBe("away");
    isAway = false;
    queue.add(bundleOf());
    await vi.advanceTimersByTimeAsync(2_100);
    expect([queue.size, queue.state]).toEqual([0, "flowing"]);
  });

  it("stands still as long as a limit says, though bundles come", async () => {
    let isLimited = true;
    const { queue, attempts, ended } = open(() => (isLimited ? limited(5_000) : accepted));
    expect(await queue.add(bundleOf())?.first).toEqual({ kind: "queued" });
    isLimited = false;
    const begin = Date.now();
    for (let i = 0; i < 5; i += 1) expect(await queue.add(bundleOf())?.first).toEqual({ kind: "queued" });
    expect(queue.state).toBe("limited");
    await vi.advanceTimersByTimeAsync(4_900);
    expect(attempts).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(2_000);
    expect(ended).toHaveLength(6);
    expect(attempts.slice(1).every((at) => at - begin >= 5_000)).toBe(true);
  });

  it("tells a limit that outlasts the bundle, and drops it", async () => {
    const { queue, ended } = open(() => limited(3_600_000));
    expect(await queue.add(bundleOf())?.first).toEqual({
      kind: "refused",
      error: { status: 429, code: "rate_limited" },
      retryAfterMs: 3_600_000,
    });
    expect([ended, queue.size]).toEqual([["expired"], 0]);
  });

  it("keeps no bundle that a limit outlasts, and asks again within a bundle's life", async () => {
    let isLimited = true;
    const { queue, ended, attempts } = open(() => (isLimited ? limited(3_600_000) : accepted));
    await queue.add(bundleOf())?.first;
    await vi.advanceTimersByTimeAsync(60_000);
    expect(await queue.add(bundleOf())?.first).toEqual({
      kind: "refused",
      error: { status: 429, code: "rate_limited" },
      retryAfterMs: 3_540_000,
    });
    expect([ended, queue.size, attempts.length]).toEqual([["expired", "expired"], 0, 1]);
    isLimited = false;
    await vi.advanceTimersByTimeAsync(60_000);
    expect(await queue.add(bundleOf())?.first).toBe(accepted);
  });

  it("gives up a bundle on which the service fails, and lets others by", async () => {
    const poison = bundleOf(66);
    const { queue, ended, attempts } = open((bundle) => (bundle === poison ? failed : accepted));
    const first = queue.add(poison)?.first;
    for (let i = 0; i < 20; i += 1) expect((await queue.add(bundleOf())?.first)?.kind).toBe("accepted");
    expect(await first).toEqual({ kind: "queued" });
    await vi.advanceTimersByTimeAsync(10_000);
    expect([ended.filter((outcome) => outcome === "expired").length, attempts.length]).toEqual([1, 23]);
  });

  it("drains at once, gives up after the grace, and takes nothing more", async () => {
    const { queue } = open(() => away(60_000));
    await queue.add(bundleOf())?.first;
    const drained = queue.drain(500);
    expect(queue.add(bundleOf())).toBeUndefined();
    await vi.advanceTimersByTimeAsync(500);
    expect(await drained).toBe(1);
    const other = open(() => accepted);
    expect(await other.queue.drain(500)).toBe(0);
    const dropped = open(() => away(60_000));
    await dropped.queue.add(bundleOf())?.first;
    expect(await dropped.queue.drain(0)).toBe(1);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(dropped.attempts).toHaveLength(1);
  });
});

it("keeps its bounds, its order of waiting and its accounts, whatever the service answers", async () => {
  const outcome = fc.oneof(
    { weight: 4, arbitrary: fc.constant(accepted) },
    { weight: 1, arbitrary: fc.constant(refused) },
    { weight: 4, arbitrary: fc.option(fc.integer({ min: 0, max: 60_000 }), { nil: undefined }).map(away) },
    { weight: 1, arbitrary: fc.option(fc.integer({ min: 0, max: 200_000 }), { nil: undefined }).map(limited) },
    { weight: 1, arbitrary: fc.constant(failed) },
  );
  const step = fc.record({ adds: fc.nat(6), length: fc.integer({ min: 0, max: 300 }), passMs: fc.nat(8_000) });
  await fc.assert(
    fc.asyncProperty(
      fc.array(outcome, { minLength: 1, maxLength: 60 }),
      fc.array(step, { minLength: 1, maxLength: 25 }),
      fc.nat(400),
      async (outcomes, steps, tookMs) => {
        vi.setSystemTime(0);
        const limits = { maxBundles: 12, maxBytes: 1_500, lifetimeMs: 30_000, concurrency: 3 };
        const notBefore = new Map<SignedBundle, number>();
        const added = new Map<SignedBundle, number>();
        const firsts: Promise<FirstOutcome>[] = [];
        let pausedUntil = 0;
        let underWay = 0;
        let calls = 0;
        let ended = 0;
        const problems: string[] = [];
        const check = (isGood: boolean, problem: string): void => {
          if (!isGood) problems.push(problem);
        };
        const queue = createForwardQueue({
          limits,
          random: () => 0.5,
          ended: () => {
            ended += 1;
          },
          async submit(bundle) {
            const at = Date.now();
            underWay += 1;
            check(underWay <= limits.concurrency, "more attempts than it may");
            check(at >= (notBefore.get(bundle) ?? 0), "sooner than the service asked");
            check(at >= pausedUntil, "within the pause of a limit");
            check(at < (added.get(bundle) ?? 0) + limits.lifetimeMs, "after the bundle's end");
            const answer = outcomes[calls % outcomes.length] ?? accepted;
            calls += 1;
            await new Promise((resolve) => setTimeout(resolve, tookMs));
            underWay -= 1;
            // Whoever hears that somebody answers again does not wait out what a service that was away asked for.
            if (answer.kind !== "away") for (const each of notBefore.keys()) notBefore.delete(each);
            if (answer.kind === "limited")
              pausedUntil = Math.max(
                pausedUntil,
                Date.now() + Math.min(limits.lifetimeMs, answer.retryAfterMs ?? 1_000),
              );
            if ("retryAfterMs" in answer && answer.kind === "away")
              notBefore.set(bundle, Date.now() + (answer.retryAfterMs ?? 0));
            return answer;
          },
        });
        let count = 0;
        for (const { adds, length, passMs } of steps) {
          for (let i = 0; i < adds; i += 1) {
            const bundle = bundleOf(length);
            added.set(bundle, Date.now());
            const had = { size: queue.size, bytes: queue.bytes };
            const taken = queue.add(bundle);
            const isFull = had.size >= limits.maxBundles || had.bytes + length > limits.maxBytes;
            check((taken === undefined) === isFull, "it takes what fits, and nothing else");
            if (taken === undefined) continue;
            count += 1;
            firsts.push(taken.first);
          }
          check(queue.size <= limits.maxBundles && queue.bytes <= limits.maxBytes, "more than it may keep");
          await vi.advanceTimersByTimeAsync(passMs);
        }
        await vi.advanceTimersByTimeAsync(limits.lifetimeMs + tookMs + 100);
        await Promise.all(firsts);
        expect(problems).toEqual([]);
        expect({ size: queue.size, bytes: queue.bytes, ended }).toEqual({ size: 0, bytes: 0, ended: count });
      },
    ),
    { numRuns: 150 },
  );
}, 60_000);

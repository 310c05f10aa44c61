import { type BrowserError, overloaded } from "./browser-error.ts";
import { planRetry } from "./retry-plan.ts";
import type { ForwardOutcome, SignedBundle } from "./verdict-client.ts";

/** Bounds of the queue. */
export interface QueueLimits {
  /** Bundles at most. 10,000. */
  readonly maxBundles: number;
  /** Their bytes at most. 64 MiB. */
  readonly maxBytes: number;
  /** How long a bundle is tried: later its session is over. 2 minutes. */
  readonly lifetimeMs: number;
  /** Attempts under way at most. 64. */
  readonly concurrency: number;
}

/** The bounds of a queue that sets none. */
export const defaultQueueLimits: QueueLimits = {
  maxBundles: 10_000,
  maxBytes: 64 * 1024 * 1024,
  lifetimeMs: 120_000,
  concurrency: 64,
};

/** What a browser can be told once its bundle's first attempt is over. */
export type FirstOutcome =
  | Extract<ForwardOutcome, { kind: "accepted" }>
  | { readonly kind: "refused"; readonly error: BrowserError; readonly retryAfterMs: number | undefined }
  /** It is kept and tried again. */
  | { readonly kind: "queued" };

/** What came of a bundle in the end; `expired` where its time was over or it failed again and again. */
export type EndOutcome = "accepted" | "refused" | "expired";

/** Forwards bundles, and keeps in memory those that the verdict service could not take yet. */
export interface ForwardQueue {
  /** Takes a bundle; undefined if the queue is full or drains. `first` never rejects. */
  add(bundle: SignedBundle): { readonly first: Promise<FirstOutcome> } | undefined;
  readonly size: number;
  readonly bytes: number;
  /** Whether bundles go out; `away`: nobody takes them; `limited`: the licence has used up what it may for now. */
  readonly state: "flowing" | "away" | "limited";
  /** Tries what is left at once, and again while it lasts, for up to `graceMs`; answers how many bundles were lost. */
  drain(graceMs: number): Promise<number>;
}

/** What a queue is made of. */
export interface ForwardQueueOptions {
  submit(bundle: SignedBundle, signal: AbortSignal): Promise<ForwardOutcome>;
  readonly limits?: Partial<QueueLimits>;
  readonly now?: () => number;
  readonly random?: () => number;
  /** Told what came of each bundle, once. */
  ended?(outcome: EndOutcome): void;
}

interface Entry {
  readonly bundle: SignedBundle;
  readonly expiresMs: number;
  attempts: number;
  /** How often the service answered that it failed on this very bundle. */
  faults: number;
  dueMs: number;
  settle: ((outcome: FirstOutcome) => void) | undefined;
}

/** Failures in a row that open the circuit breaker: then one bundle at a time probes, until one gets through. */
const breakerFailures = 5;
const maxProbeDelayMs = 2_000;
/** A bundle on which the service fails so often is dropped: it is the bundle, and not the hour. */
const maxFaults = 3;
/** What a service that limits without saying for how long is given. */
const defaultPauseMs = 1_000;

/** Opens a queue. */
export function createForwardQueue(options: ForwardQueueOptions): ForwardQueue {
  const limits = { ...defaultQueueLimits, ...options.limits };
  const { now = Date.now, random = Math.random } = options;
  const waiting = new Set<Entry>();
  const controller = new AbortController();
  let underWay = 0;
  let size = 0;
  let bytes = 0;
  let failures = 0;
  let probeAtMs = 0;
  let pausedUntilMs = 0;
  /** The last limit, and until when it holds by what the service said, however long that is. */
  let limit: { readonly error: BrowserError; readonly untilMs: number } | undefined;
  let timer: NodeJS.Timeout | undefined;
  let wakesAtMs = Number.POSITIVE_INFINITY;
  let draining = false;
  let emptied: (() => void) | undefined;

  const isAway = (): boolean => failures >= breakerFailures;

  /** How many attempts may be under way now, and when that changes by itself. */
  const room = (): { count: number; untilMs: number } => {
    if (now() < pausedUntilMs) return { count: 0, untilMs: pausedUntilMs };
    if (!isAway()) return { count: limits.concurrency, untilMs: Number.POSITIVE_INFINITY };
    return now() < probeAtMs ? { count: 0, untilMs: probeAtMs } : { count: 1, untilMs: Number.POSITIVE_INFINITY };
  };

  const settle = (entry: Entry, outcome: FirstOutcome): void => {
    entry.settle?.(outcome);
    entry.settle = undefined;
  };

  const end = (entry: Entry, outcome: EndOutcome): void => {
    size -= 1;
    bytes -= entry.bundle.bytes.length;
    options.ended?.(outcome);
    if (size === 0) emptied?.();
  };

  /** The service is there: whoever waits for it to come back waits no longer. */
  const reached = (): void => {
    if (isAway()) for (const each of waiting) each.dueMs = Math.min(each.dueMs, now());
    failures = 0;
  };

  const attempt = async (entry: Entry): Promise<void> => {
    waiting.delete(entry);
    underWay += 1;
    entry.attempts += 1;
    const outcome = await options.submit(entry.bundle, controller.signal);
    underWay -= 1;
    if (outcome.kind === "away") failures += 1;
    else reached();
    if (outcome.kind === "accepted" || outcome.kind === "refused") {
      settle(entry, outcome);
      end(entry, outcome.kind);
    } else {
      if (outcome.kind === "failed") entry.faults += 1;
      const step = planRetry({
        attempts: entry.attempts,
        nowMs: now(),
        expiresMs: entry.expiresMs,
        retryAfterMs: outcome.retryAfterMs,
        random: random(),
      });
      if (outcome.kind === "limited") {
        const pauseMs = Math.min(limits.lifetimeMs, outcome.retryAfterMs ?? defaultPauseMs);
        pausedUntilMs = Math.max(pausedUntilMs, now() + pauseMs);
        limit = { error: outcome.error, untilMs: now() + (outcome.retryAfterMs ?? defaultPauseMs) };
      }
      if (step.action === "drop" || entry.faults >= maxFaults) {
        const error = outcome.kind === "limited" ? outcome.error : overloaded;
        settle(entry, { kind: "refused", error, retryAfterMs: outcome.retryAfterMs });
        end(entry, "expired");
      } else {
        entry.dueMs = now() + step.delayMs;
        if (outcome.kind === "away") probeAtMs = Math.max(probeAtMs, now() + Math.min(step.delayMs, maxProbeDelayMs));
        waiting.add(entry);
        settle(entry, { kind: "queued" });
      }
    }
    pump();
  };

  const wake = (atMs: number): void => {
    clearTimeout(timer);
    wakesAtMs = atMs;
    timer = setTimeout(pump, Math.max(5, atMs - now()));
    if (!draining) timer.unref();
  };

  /** Ends what is past its time, begins what is due and has room, and wakes for the rest. */
  const pump = (): void => {
    clearTimeout(timer);
    wakesAtMs = Number.POSITIVE_INFINITY;
    if (controller.signal.aborted) return;
    const { count, untilMs } = room();
    let nextMs = Number.POSITIVE_INFINITY;
    for (const entry of waiting) {
      if (entry.expiresMs <= now()) {
        waiting.delete(entry);
        settle(entry, { kind: "refused", error: overloaded, retryAfterMs: undefined });
        end(entry, "expired");
      } else if (entry.dueMs <= now() && underWay < count) void attempt(entry);
      else {
        if (count === 0 || isAway()) settle(entry, { kind: "queued" });
        // The end of an attempt comes back here; until then nothing changes but what expires.
        const isFull = underWay >= count && count > 0;
        const beginsMs = count === 0 ? Math.max(entry.dueMs, untilMs) : entry.dueMs;
        nextMs = Math.min(nextMs, entry.expiresMs, isFull ? Number.POSITIVE_INFINITY : beginsMs);
      }
    }
    if (nextMs !== Number.POSITIVE_INFINITY) wake(nextMs);
  };

  return {
    get size() {
      return size;
    },
    get bytes() {
      return bytes;
    },
    get state() {
      if (now() < pausedUntilMs) return "limited";
      return isAway() ? "away" : "flowing";
    },
    add(bundle) {
      if (draining || size >= limits.maxBundles || bytes + bundle.bytes.length > limits.maxBytes) return undefined;
      if (limit !== undefined && now() < pausedUntilMs && limit.untilMs >= now() + limits.lifetimeMs) {
        // It would only wait for its end.
        options.ended?.("expired");
        const { error, untilMs } = limit;
        return { first: Promise.resolve({ kind: "refused", error, retryAfterMs: untilMs - now() }) };
      }
      size += 1;
      bytes += bundle.bytes.length;
      const first = new Promise<FirstOutcome>((resolve) => {
        const expiresMs = now() + limits.lifetimeMs;
        const entry: Entry = { bundle, expiresMs, attempts: 0, faults: 0, dueMs: now(), settle: resolve };
        waiting.add(entry);
        const { count, untilMs } = room();
        if (count > underWay) pump();
        else {
          // A full queue is not looked through for each bundle that joins it.
          if (count === 0 || isAway()) settle(entry, { kind: "queued" });
          const beginsMs = Math.min(expiresMs, untilMs);
          if (beginsMs < wakesAtMs) wake(beginsMs);
        }
      });
      return { first };
    },
    async drain(graceMs) {
      draining = true;
      for (const entry of waiting) entry.dueMs = now();
      failures = 0;
      pausedUntilMs = 0;
      if (graceMs > 0) pump();
      if (size > 0 && graceMs > 0) {
        let over: NodeJS.Timeout | undefined;
        await Promise.race([
          new Promise<void>((resolve) => {
            emptied = resolve;
          }),
          new Promise<void>((resolve) => {
            over = setTimeout(resolve, graceMs);
          }),
        ]);
        clearTimeout(over);
      }
      const lost = size;
      controller.abort();
      clearTimeout(timer);
      return lost;
    },
  };
}

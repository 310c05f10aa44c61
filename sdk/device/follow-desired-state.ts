import { durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import type { DesiredState } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import { type BackoffOptions, backoffMs, jitteredMs } from "../backoff.ts";
import { retryAfterMsOf } from "../reason.ts";
import { wait } from "../wait.ts";

/** How a device hears of its desired state. */
export type FollowMode = "stream" | "poll" | "offline";

/** What following needs. */
export interface FollowOptions {
  /** `stream` falls back to polling by itself; `poll` never opens a stream. */
  follow: "stream" | "poll";
  /** Opens a stream that begins after the state with this etag. `onOpen` is called when the server has answered. */
  watch(etag: string, signal: AbortSignal, onOpen: () => void): AsyncIterable<DesiredState>;
  /** Asks once; waits up to `waitMs` for a state other than the one with this etag. */
  poll(etag: string, waitMs: number, signal: AbortSignal): Promise<DesiredState>;
  /** Told every state that is new and no older than the one before. */
  onState(state: DesiredState): void;
  /** Told when the way of hearing changes. */
  onMode(mode: FollowMode): void;
  /** Told every failure. The answer may take time (a refresh of the credential). */
  onError(error: unknown): Promise<void>;
  /** Ends everything. */
  signal: AbortSignal;
  /** How attempts are spaced. Default: 250 ms at first, 60 s at most. */
  backoff?: BackoffOptions;
  /** How long polling goes on before a stream is tried again, in milliseconds. Default 300,000. */
  streamRetryMs?: number;
  /** How long one poll waits for a change, in milliseconds, 60,000 at most. Default 25,000. */
  pollWaitMs?: number;
  random?: () => number;
  sleep?: (ms: number, signal?: AbortSignal) => Promise<void>;
  /** Milliseconds of a clock that never goes back. */
  monotonicMs?: () => number;
}

/** Following that is under way. */
export interface Following {
  /** Ends with the signal. Never rejects. */
  readonly done: Promise<void>;
  /** The etag that the device holds: of the last state it was told. */
  etag(): string;
  /** Asks now: something else said that there is a state with this etag. */
  check(etag: string): void;
}

/** Streams that fail in a row before polling takes over. */
const maxStreamFailures = 3;
/** A stream that lasted this long was a good one, though it ends. */
const goodStreamMs = 10_000;
const minPollMs = 1_000;

/**
 * Follows a device's desired state until the signal aborts: by a stream, resumed by etag with back-off, and by polling
 * where streams fail three times in a row or are not served (a proxy that buffers, a server that says UNIMPLEMENTED),
 * until a stream is tried again. A poll that brought a change, or that the server held until its end, is followed by the
 * next one after a second; others by the server's interval, both spread by 10 %.
 */
export function followDesiredState(options: FollowOptions): Following {
  const { signal } = options;
  const sleep = options.sleep ?? wait;
  const random = options.random ?? Math.random;
  const monotonicMs = options.monotonicMs ?? (() => performance.now());
  const backoff = options.backoff ?? { baseDelayMs: 250, maxDelayMs: 60_000 };
  let held: { etag: string; time: number } = { etag: "", time: 0 };
  let mode: FollowMode | undefined;
  let nudge = new AbortController();
  let checking: string | undefined;

  function setMode(next: FollowMode) {
    if (mode === next) return;
    mode = next;
    options.onMode(next);
  }

  function take(state: DesiredState) {
    const time = state.createTime === undefined ? 0 : timestampMs(state.createTime);
    // A poll and the stream may overtake each other.
    if (state.etag === held.etag || time < held.time) return;
    held = { etag: state.etag, time };
    options.onState(state);
  }

  async function streamUntilItFails(): Promise<void> {
    let failures = 0;
    while (!signal.aborted && failures < maxStreamFailures) {
      const begin = monotonicMs();
      let failure: unknown;
      let hasSpoken = false;
      try {
        for await (const state of options.watch(held.etag, signal, () => setMode("stream"))) {
          hasSpoken = true;
          setMode("stream");
          take(state);
        }
      } catch (error) {
        failure = error;
      }
      if (signal.aborted) return;
      if (failure !== undefined) {
        setMode("offline");
        await options.onError(failure);
      }
      if (failure instanceof ConnectError && failure.code === Code.Unimplemented) return;
      failures = hasSpoken || monotonicMs() - begin >= goodStreamMs ? 1 : failures + 1;
      const pauseMs = Math.max(retryAfterMsOf(failure) ?? 0, backoffMs(failures, backoff, random));
      await sleep(pauseMs, signal);
    }
  }

  async function pollFor(ms: number): Promise<void> {
    const pollWaitMs = options.pollWaitMs ?? 25_000;
    const end = monotonicMs() + ms;
    let failures = 0;
    while (!signal.aborted && monotonicMs() < end) {
      const begin = monotonicMs();
      let pauseMs: number;
      try {
        const before = held.etag;
        const state = await options.poll(before, pollWaitMs, signal);
        failures = 0;
        setMode("poll");
        take(state);
        const waitedMs = monotonicMs() - begin;
        // A server that holds polls is asked again at once: the next change may follow on the heels of this one.
        const isHeld = state.etag !== before || waitedMs >= pollWaitMs * 0.8;
        const interval = state.pollInterval === undefined ? 30_000 : durationMs(state.pollInterval);
        pauseMs = isHeld ? jitteredMs(minPollMs, random) : Math.max(minPollMs, jitteredMs(interval, random) - waitedMs);
      } catch (error) {
        if (signal.aborted) return;
        await options.onError(error);
        failures++;
        setMode("offline");
        pauseMs = Math.max(retryAfterMsOf(error) ?? 0, backoffMs(failures, { ...backoff, baseDelayMs: 1_000 }, random));
      }
      await sleep(pauseMs, AbortSignal.any([signal, nudge.signal])).catch(() => {});
    }
  }

  const run = async () => {
    while (!signal.aborted) {
      try {
        if (options.follow === "stream") await streamUntilItFails();
        await pollFor(options.follow === "stream" ? (options.streamRetryMs ?? 300_000) : Number.POSITIVE_INFINITY);
      } catch (error) {
        if (!signal.aborted) await options.onError(error);
      }
    }
  };

  return {
    done: run(),
    etag: () => held.etag,
    check(etag) {
      if (etag === held.etag || etag === "" || checking !== undefined || signal.aborted) return;
      if (mode !== "stream") {
        nudge.abort();
        nudge = new AbortController();
        return;
      }
      checking = etag;
      options
        .poll(held.etag, 0, signal)
        .then(take, options.onError)
        .finally(() => {
          checking = undefined;
        })
        .catch(() => {});
    },
  };
}

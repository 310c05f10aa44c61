import { create } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { DesiredStateSchema } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import { describe, expect, test } from "vitest";
import { refusal } from "../testing/fake-mesh.ts";
import { type FollowMode, type FollowOptions, followDesiredState } from "./follow-desired-state.ts";

const state = (etag: string, timeMs = 0) =>
  create(DesiredStateSchema, { etag, createTime: timestampFromMs(timeMs), pollInterval: durationFromMs(5_000) });

/** Follows with a clock that only sleeping moves; ends after so much of its time. */
async function follow(endMs: number, options: Partial<FollowOptions>) {
  const abort = new AbortController();
  let clock = 0;
  const slept: number[] = [];
  const states: string[] = [];
  const modes: FollowMode[] = [];
  const errors: unknown[] = [];
  const following = followDesiredState({
    follow: "stream",
    watch: () => {
      throw new ConnectError("away", Code.Unavailable);
    },
    poll: async () => {
      throw new ConnectError("away", Code.Unavailable);
    },
    onState: ({ etag }) => states.push(etag),
    onMode: (mode) => modes.push(mode),
    onError: async (error) => void errors.push(error),
    signal: abort.signal,
    random: () => 0.5,
    monotonicMs: () => clock,
    async sleep(ms) {
      slept.push(ms);
      clock += ms;
      if (clock >= endMs) abort.abort();
    },
    ...options,
  });
  await following.done;
  return { slept, states, modes, errors };
}

describe("following a desired state", () => {
  test("resumes a stream that ends with the etag that it had come to", async () => {
    const etags: string[] = [];
    const { states, modes } = await follow(1_000, {
      async *watch(etag) {
        etags.push(etag);
        yield state(`e${etags.length}`, etags.length);
      },
    });
    expect(etags.slice(0, 3)).toEqual(["", "e1", "e2"]);
    expect(states.slice(0, 3)).toEqual(["e1", "e2", "e3"]);
    expect(modes).toEqual(["stream"]);
  });

  test("polls after three streams that failed, and tries a stream again later", async () => {
    let streams = 0;
    let polls = 0;
    const { modes, slept } = await follow(700_000, {
      watch: () => {
        streams++;
        throw new ConnectError("away", Code.Unavailable);
      },
      poll: async () => {
        polls++;
        return state("e1");
      },
    });
    expect(modes.slice(0, 4)).toEqual(["offline", "poll", "offline", "poll"]);
    expect(streams).toBeGreaterThanOrEqual(6);
    expect(polls).toBeGreaterThan(100);
    // Full jitter at one half of 250, 500 and 1,000 ms; a second after the poll that brought a change; then the server's poll interval.
    expect(slept.slice(0, 5)).toEqual([125, 250, 500, 1_000, 5_000]);
  });

  test("polls at once where streams are not served", async () => {
    let streams = 0;
    await follow(60_000, {
      watch: () => {
        streams++;
        throw new ConnectError("no", Code.Unimplemented);
      },
      poll: async () => state("e1"),
    });
    expect(streams).toBe(1);
  });

  test("never opens a stream where it is to poll", async () => {
    const { modes } = await follow(60_000, {
      follow: "poll",
      watch: () => {
        throw new Error("a stream was opened");
      },
      poll: async () => state("e1"),
    });
    expect(modes).toEqual(["poll"]);
  });

  test("polls again after a second where the server held the poll to its end", async () => {
    const { slept } = await follow(5_000, { follow: "poll", pollWaitMs: 0, poll: async () => state("e1") });
    expect(slept).toEqual([1_000, 1_000, 1_000, 1_000, 1_000]);
  });

  test("waits as the server asks", async () => {
    const { slept } = await follow(60_000, {
      follow: "poll",
      poll: async () => {
        throw refusal(Code.ResourceExhausted, "RATE_LIMITED", 20_000);
      },
    });
    expect(slept).toEqual([20_000, 20_000, 20_000]);
  });

  test("tells a state once, and none that is older than the one before", async () => {
    const { states } = await follow(1, {
      async *watch() {
        yield state("e2", 2);
        yield state("e2", 3);
        yield state("e1", 1);
        yield state("e3", 3);
      },
    });
    expect(states).toEqual(["e2", "e3"]);
  });

  test("asks when something else says that there is news, though the stream is silent", async () => {
    const abort = new AbortController();
    const states: string[] = [];
    const following = followDesiredState({
      follow: "stream",
      async *watch(_etag, signal, onOpen) {
        onOpen();
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
      poll: async () => state("e9", 9),
      onState({ etag }) {
        states.push(etag);
        abort.abort();
      },
      onMode: (mode) => {
        if (mode === "stream") queueMicrotask(() => following.check("e9"));
      },
      onError: async () => {},
      signal: abort.signal,
    });
    await following.done;
    expect(states).toEqual(["e9"]);
  });
});

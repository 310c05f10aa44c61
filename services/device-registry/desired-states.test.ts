import { create } from "@bufbuild/protobuf";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { DesiredStateSchema } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import { ResolveDesiredStatesResponseSchema } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import pino from "pino";
import { describe, expect, it } from "vitest";
import { maxWatchesOfDevice, openDesiredStates } from "./desired-states.ts";
import { deviceChange } from "./device-change.ts";
import { openDeviceFacts } from "./device-facts.ts";
import type { StoredState } from "./registration.ts";

interface Resolving {
  readonly deviceIds: string[];
  answer(etag: string): void;
  fail(): void;
}

/** Desired states whose questions to rollout are answered by hand, in any order. */
function open(options: { maxWatches?: number; following?: boolean } = {}) {
  const resolving: Resolving[] = [];
  const waiting: ((next: Resolving) => void)[] = [];
  const source = { state: "active" as StoredState, nowMs: 0 };
  const states = openDesiredStates({
    client: {
      resolveDesiredStates(request) {
        const deviceIds = (request.devices ?? []).map((device) => device.deviceId ?? "");
        return new Promise((resolve, reject) => {
          const next: Resolving = {
            deviceIds,
            answer: (etag) => {
              const desiredStates = deviceIds.map((deviceId) => create(DesiredStateSchema, { deviceId, etag }));
              resolve(create(ResolveDesiredStatesResponseSchema, { desiredStates }));
            },
            fail: () => reject(new Error("away")),
          };
          const waiter = waiting.shift();
          if (waiter === undefined) resolving.push(next);
          else waiter(next);
        });
      },
    },
    facts: openDeviceFacts({
      load: async (_, ids) => new Map(ids.map((id) => [id, { state: source.state, groupIds: [] }])),
    }),
    clock: { now: () => source.nowMs },
    log: pino({ level: "silent" }),
    pollIntervalMs: 30_000,
    isFollowing: () => options.following ?? true,
    maxWatches: options.maxWatches,
  });
  const asked = (): Promise<Resolving> => {
    const next = resolving.shift();
    return next === undefined ? new Promise((resolve) => waiting.push(resolve)) : Promise.resolve(next);
  };
  return { states, source, asked, unanswered: () => resolving.length };
}

const never = new AbortController().signal;

describe("desired states", () => {
  it("never go back to an answer that was begun before a change", async () => {
    const { states, asked } = open();
    const stop = new AbortController();
    const watch = states.watch("org", "dev", "", stop.signal);
    const first = watch.next();
    (await asked()).answer("v1");
    expect((await first).value?.etag).toBe("v1");

    const second = watch.next();
    states.devicesChanged("org", deviceChange(["dev"]));
    const early = await asked();
    states.definitionsChanged(["org"]);
    const late = await asked();
    late.answer("v2");
    expect((await second).value?.etag).toBe("v2");
    const third = watch.next();
    early.answer("v1");
    states.definitionsChanged(["org"]);
    (await asked()).answer("v3");
    expect((await third).value?.etag).toBe("v3");
    stop.abort();
    expect((await watch.next()).done).toBe(true);
    expect(states.watchers()).toBe(0);
    states.stop();
  });

  it("of several changes deliver the last", async () => {
    const { states, asked } = open();
    const watch = states.watch("org", "dev", "v0", never);
    const first = watch.next();
    (await asked()).answer("v0");
    for (const etag of ["v1", "v2"]) {
      states.definitionsChanged(["org"]);
      (await asked()).answer(etag);
    }
    expect(["v1", "v2"]).toContain((await first).value?.etag);
    states.stop();
    await watch.return(undefined);
  });

  it("are asked for again until rollout answers", async () => {
    const { states, asked } = open();
    const watch = states.watch("org", "dev", "", never);
    const first = watch.next();
    (await asked()).fail();
    (await asked()).answer("v1");
    expect((await first).value?.etag).toBe("v1");
    states.stop();
    expect((await watch.next()).done).toBe(true);
  });

  it("end for a device that may not act any more", async () => {
    const { states, asked, source } = open();
    const watch = states.watch("org", "dev", "", never);
    const first = watch.next();
    (await asked()).answer("v1");
    await first;
    source.state = "revoked";
    states.devicesChanged("org", deviceChange(["dev"]));
    const error = await watch.next().catch((thrown: unknown) => thrown);
    expect(reasonOf(error)).toBe(Reason.DEVICE_NOT_ACTIVE);
    expect(states.watchers()).toBe(0);
    expect(await states.get("org", "dev")).toEqual({ active: false, exists: true });
    states.stop();
  });

  it("are watched by a bounded number of devices", async () => {
    const { states } = open({ maxWatches: 1 });
    const first = states.watch("org", "a", "", never);
    void first.next();
    const error = await states
      .watch("org", "b", "", never)
      .next()
      .catch((thrown: unknown) => thrown);
    expect(reasonOf(error)).toBe(Reason.OVERLOADED);
    states.stop();
  });

  it("are not taken from a device by those who only look on", async () => {
    const { states, asked } = open();
    const own = states.watch("org", "dev", "", never);
    const first = own.next();
    (await asked()).answer("v1");
    await first;
    const next = own.next();
    const others = Array.from({ length: maxWatchesOfDevice + 1 }, () =>
      states.watch("org", "dev", "v1", never, "bystander"),
    );
    const [oldest] = others.map((watch) => watch.next());
    expect((await oldest)?.done).toBe(true);
    states.definitionsChanged(["org"]);
    (await asked()).answer("v2");
    expect((await next).value?.etag).toBe("v2");
    states.stop();
  });

  it("are remembered by etag until a change that concerns them", async () => {
    const { states, asked, unanswered } = open();
    const etag = async (answer?: string) => {
      const work = states.etag("org", "dev");
      if (answer !== undefined) (await asked()).answer(answer);
      return await work;
    };
    expect(await etag("v1")).toBe("v1");
    expect(await etag()).toBe("v1");
    states.definitionsChanged(["another"]);
    states.devicesChanged("org", deviceChange(["another"]));
    expect(await etag()).toBe("v1");
    states.definitionsChanged(["org"]);
    expect(await etag("v2")).toBe("v2");
    states.devicesChanged("org", deviceChange(["dev"]));
    expect(await etag("v3")).toBe("v3");
    states.everythingChanged();
    expect(await etag("v4")).toBe("v4");
    expect(unanswered()).toBe(0);
    states.stop();
  });

  it("are not remembered from an answer that was begun before a change", async () => {
    const { states, asked } = open();
    const work = states.etag("org", "dev");
    const early = await asked();
    states.definitionsChanged(["org"]);
    early.answer("v1");
    expect(await work).toBe("v1");
    const again = states.etag("org", "dev");
    (await asked()).answer("v2");
    expect(await again).toBe("v2");
    states.stop();
  });

  it("are trusted for less long while changes do not arrive", async () => {
    const { states, asked, source } = open({ following: false });
    const first = states.etag("org", "dev");
    (await asked()).answer("v1");
    await first;
    source.nowMs = 29_999;
    expect(await states.etag("org", "dev")).toBe("v1");
    source.nowMs = 30_000;
    const failing = states.etag("org", "dev");
    (await asked()).fail();
    expect(await failing).toBe("v1");
    states.stop();
  });
});

import { Code, ConnectError } from "@connectrpc/connect";
import { fail, Reason } from "@octomesh/mesh/errors";
import { DeviceError } from "@octomesh/sdk";
import { expect, test } from "vitest";
import { callStatistics, percentile } from "./call-statistics.ts";

test("percentiles are by nearest rank", () => {
  expect(percentile([], 0.5)).toBe(0);
  expect(percentile([1, 2, 3, 4], 0.5)).toBe(2);
  expect(percentile([1, 2, 3, 4], 0.51)).toBe(3);
  expect(percentile([1, 2, 3, 4], 1)).toBe(4);
});

test("counts calls by method and failures by reason, but not what the fleet gave up itself", () => {
  const statistics = callStatistics();
  statistics.record("Heartbeat", 10);
  statistics.record("Heartbeat", 30);
  statistics.record("RegisterDevice", 5, fail(Reason.RATE_LIMITED, "too many calls"));
  statistics.record("RegisterDevice", 5, new ConnectError("gone", Code.Unavailable));
  statistics.record("WatchDesiredState", 1, new ConnectError("closed", Code.Canceled));
  const closed = new DeviceError("CLOSED", "the client is closed");
  statistics.record("WatchDesiredState", 1, ConnectError.from(closed, Code.Internal));
  expect(statistics.summary()).toMatchObject({
    calls: 6,
    errors: 2,
    errorsByReason: { RATE_LIMITED: 1, Unavailable: 1 },
    byMethod: { Heartbeat: { calls: 2, p50Ms: 10, p99Ms: 30, maxMs: 30 } },
  });
});

test("keeps a bounded sample of any number of calls", () => {
  const statistics = callStatistics();
  for (let index = 0; index < 20_000; index += 1) statistics.record("Heartbeat", index % 100);
  const { Heartbeat } = statistics.summary().byMethod;
  expect(Heartbeat?.calls).toBe(20_000);
  expect(Heartbeat?.p50Ms).toBeGreaterThan(40);
  expect(Heartbeat?.p50Ms).toBeLessThan(60);
});

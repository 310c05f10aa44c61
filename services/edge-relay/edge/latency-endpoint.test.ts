import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, expect, it } from "vitest";
import type { IcmpEcho } from "../signals/icmp-echo.ts";
import { createTestLog, runChannel } from "../test/edge-fixture.ts";
import { createAddressLimits } from "./address-limits.ts";
import { createLatencyEndpoint } from "./latency-endpoint.ts";
import { loopbackOrigins } from "./origin-rule.ts";

const closers: (() => void)[] = [];

afterEach(() => {
  for (const close of closers.splice(0)) close();
});

/** An endpoint whose echoes find what `best` says, and wait for more of them for their whole time, as lost ones do. */
async function open(best: number | undefined) {
  const icmp: IcmpEcho = {
    available: true,
    close: () => undefined,
    ping: (_, { timeoutMs, signal }) =>
      new Promise((resolve) => {
        const timer = setTimeout(() => resolve(best), timeoutMs);
        signal?.addEventListener("abort", () => {
          clearTimeout(timer);
          resolve(best);
        });
      }),
  };
  const endpoint = createLatencyEndpoint({
    role: "edge",
    name: "edge",
    location: undefined,
    landmarks: [],
    origins: loopbackOrigins,
    limits: createAddressLimits(600, performance.now.bind(performance)),
    pathOf: (request) => (request.url ?? "").split("?")[0] ?? "",
    endOf: () => ({ address: "127.0.0.1", behindProxy: false }),
    reportedOf: ({ address }) => address,
    timingOf: () => ({}),
    signer: () => undefined,
    icmp,
    log: createTestLog().log,
  });
  const server = createServer().on("upgrade", endpoint.upgrade);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  closers.push(() => server.close());
  return { endpoint, url: `ws://127.0.0.1:${(server.address() as AddressInfo).port}/v1/ws` };
}

it.each([undefined, 1_500])("waits no longer than for its pings where echoes are lost; they found %s", async (best) => {
  const { endpoint, url } = await open(best);
  const began = performance.now();
  const { hello, done } = await runChannel(url);
  expect(performance.now() - began).toBeLessThan(800);
  expect(done?.pings).toBe(5);
  expect(endpoint.take(hello.channel, "ref")).toMatchObject({ icmpUs: best, channel: { sourceAddress: "127.0.0.1" } });
  expect(endpoint.take(hello.channel, "ref")).toBeUndefined();
});

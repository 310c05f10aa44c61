import { Code, ConnectError } from "@connectrpc/connect";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { testCall } from "@octomesh/mesh/test/database-fixture";
import { Device_State as State } from "@octomesh/proto/octomesh/device/v1/device_pb";
import { describe, expect, it } from "vitest";
import { createActiveDevices } from "./active-devices.ts";

const id = newId("dev");

function setUp() {
  const registry = { state: State.ACTIVE, asked: 0, failure: undefined as ConnectError | undefined };
  let nowMs = 0;
  const devices = createActiveDevices({
    client: {
      async getDevice() {
        registry.asked += 1;
        if (registry.failure !== undefined) throw registry.failure;
        return { state: registry.state } as never;
      },
    },
    delegated: () => ({}),
    clock: { now: () => nowMs },
  });
  const base = testCall(newId("org"));
  const call = { ...base, caller: { ...base.caller, kind: "device" as const, id } };
  return {
    registry,
    pass: (ms: number) => {
      nowMs += ms;
    },
    demand: () =>
      devices.demand(call).then(
        () => "admitted",
        (error: unknown) => reasonOf(error) ?? error,
      ),
  };
}

describe("a device that reports", () => {
  it("is asked about once while it is active, however often it reports at once", async () => {
    const { registry, demand, pass } = setUp();
    expect(await Promise.all([demand(), demand(), demand()])).toEqual(["admitted", "admitted", "admitted"]);
    expect(registry.asked).toBe(1);
    pass(9 * 60_000);
    expect(await demand()).toBe("admitted");
    expect(registry.asked).toBe(1);
    pass(2 * 60_000);
    await demand();
    expect(registry.asked).toBe(2);
  });

  it("is refused while it awaits approval, and admitted soon after it has it", async () => {
    const { registry, demand, pass } = setUp();
    registry.state = State.AWAITING_APPROVAL;
    expect(await demand()).toBe(Reason.DEVICE_NOT_ACTIVE);
    registry.state = State.ACTIVE;
    expect(await demand()).toBe(Reason.DEVICE_NOT_ACTIVE);
    pass(5_000);
    expect(await demand()).toBe("admitted");
  });

  it("is refused where the registry does not know it", async () => {
    const { registry, demand } = setUp();
    registry.failure = new ConnectError("none", Code.NotFound);
    expect(await demand()).toBe(Reason.DEVICE_NOT_ACTIVE);
  });

  it("is not decided about while the registry is away", async () => {
    const { registry, demand } = setUp();
    registry.failure = new ConnectError("away", Code.Unavailable);
    expect(await demand()).toBe(registry.failure);
    registry.failure = undefined;
    expect(await demand()).toBe("admitted");
  });
});

import { ConfigError } from "@octomesh/mesh/config";
import { describe, expect, it } from "vitest";
import { readDeviceRegistryConfig } from "./service.ts";

describe("the configuration", () => {
  it("keeps a device far below its limit by default", () => {
    const { heartbeatIntervalMs, pollIntervalMs } = readDeviceRegistryConfig({});
    expect({ heartbeatIntervalMs, pollIntervalMs }).toEqual({ heartbeatIntervalMs: 60_000, pollIntervalMs: 30_000 });
    expect(60_000 / heartbeatIntervalMs + 60_000 / pollIntervalMs).toBeLessThan(10);
  });

  it("is read from the environment, and names what is wrong", () => {
    const name = "OCTOMESH_DEVICE_REGISTRY_HEARTBEAT_INTERVAL";
    expect(readDeviceRegistryConfig({ [name]: "5m" }).heartbeatIntervalMs).toBe(300_000);
    expect(() => readDeviceRegistryConfig({ [name]: "1s" })).toThrow(ConfigError);
    expect(() => readDeviceRegistryConfig({ [name]: "soon" })).toThrow(name);
  });
});

import { describe, expect, it } from "vitest";
import { isServiceName, portsOf, schemaOf, serviceNames, variableOf } from "./service-name.ts";

describe("a service's name", () => {
  it("gives its three ports, none of which is another's", () => {
    expect(portsOf("identity")).toEqual({ mesh: 7101, public: 7201, admin: 7301 });
    expect(portsOf("device-registry")).toEqual({ mesh: 7102, public: 7202, admin: 7302 });
    expect(portsOf("rollout")).toEqual({ mesh: 7103, public: 7203, admin: 7303 });
    expect(portsOf("telemetry")).toEqual({ mesh: 7104, public: 7204, admin: 7304 });
    expect(portsOf("edge-relay")).toEqual({ mesh: 7105, public: 7205, admin: 7305 });
    expect(portsOf("verdict")).toEqual({ mesh: 7106, public: 7206, admin: 7306 });
  });

  it("gives its schema and its part of variables", () => {
    expect(schemaOf("device-registry")).toBe("device_registry");
    expect(variableOf("edge-relay")).toBe("EDGE_RELAY");
    for (const name of serviceNames) expect(schemaOf(name)).toMatch(/^[a-z_]+$/);
  });

  it("is one of six, and nothing that only looks like one", () => {
    for (const name of serviceNames) expect(isServiceName(name)).toBe(true);
    for (const name of ["", "Identity", "identity ", "edge", "constructor", "device_registry"]) {
      expect(isServiceName(name)).toBe(false);
    }
  });
});

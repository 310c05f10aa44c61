import { describe, expect, test } from "vitest";
import { defaultLimits } from "./admit.ts";
import type { Environment } from "./config.ts";
import { logLevelOf, readRuntimeConfig } from "./runtime-config.ts";

function problems(environment: Environment): readonly string[] {
  try {
    readRuntimeConfig("device-registry", environment);
  } catch (error) {
    return (error as { problems?: readonly string[] }).problems ?? [String(error)];
  }
  return [];
}

describe("the configuration of a service", () => {
  test("needs nothing on one machine", () => {
    const config = readRuntimeConfig("device-registry", {});
    expect(config).toMatchObject({
      stateDir: ".octomesh",
      production: false,
      host: "127.0.0.1",
      meshHost: "127.0.0.1",
      adminHost: "127.0.0.1",
      ports: { mesh: 7102, public: 7202, admin: 7302 },
      allowPlaintext: false,
      identityFiles: undefined,
      publicTls: undefined,
      siblingUrls: {},
      replicas: 1,
      corsOrigins: [],
      limits: defaultLimits,
      graceMs: 10_000,
    });
  });

  test("takes a service's own variables, and no other service's", () => {
    const config = readRuntimeConfig("device-registry", {
      OCTOMESH_DEVICE_REGISTRY_PUBLIC_PORT: "8001",
      OCTOMESH_ROLLOUT_PUBLIC_PORT: "8002",
      OCTOMESH_DEVICE_REGISTRY_DATABASE_URL: "postgres://own",
      OCTOMESH_ROLLOUT_DATABASE_URL: "postgres://other",
      DATABASE_URL: "postgres://shared",
      OCTOMESH_ROLLOUT_URL: "https://rollout.mesh:7103/",
      OCTOMESH_LIMIT_REGISTRATION: "50",
    });
    expect([config.ports.public, config.databaseUrl, config.siblingUrls, config.limits.registration]).toEqual([
      8001,
      "postgres://own",
      { rollout: "https://rollout.mesh:7103" },
      { points: 50, windowMs: 60_000 },
    ]);
  });

  test("lists every variable that is wrong at once, and says what is expected", () => {
    expect(
      problems({
        OCTOMESH_DEVICE_REGISTRY_MESH_PORT: "seventy",
        OCTOMESH_ROLLOUT_URL: "http://rollout.mesh:7103",
        OCTOMESH_LIMIT_EDGE: "0",
        OCTOMESH_LOG_LEVEL: "loud",
        OCTOMESH_TRUST_DOMAIN: "Mesh/../other",
      }).map((problem) => problem.split(" ")[0]),
    ).toEqual(
      expect.arrayContaining([
        "OCTOMESH_DEVICE_REGISTRY_MESH_PORT",
        "OCTOMESH_ROLLOUT_URL",
        "OCTOMESH_LIMIT_EDGE",
        "OCTOMESH_LOG_LEVEL",
        "OCTOMESH_TRUST_DOMAIN",
      ]),
    );
  });

  test.each<[string, Environment, RegExp]>([
    ["a sibling without TLS", { OCTOMESH_IDENTITY_URL: "http://identity:7101" }, /OCTOMESH_IDENTITY_URL .*https:/],
    ["a part of the certificate", { OCTOMESH_TLS_KEY_FILE: "k" }, /belong together/],
    ["a part of the public certificate", { OCTOMESH_PUBLIC_TLS_CERT_FILE: "c" }, /belong together/],
    ["production without certificates", { OCTOMESH_PRODUCTION: "true" }, /needs certificates/],
    ["production without a master key", { OCTOMESH_PRODUCTION: "true" }, /OCTOMESH_MASTER_KEY/],
    ["replicas without Redis", { OCTOMESH_REPLICAS: "2" }, /REDIS_URL/],
    ["a Redis that is none", { REDIS_URL: "http://redis:6379" }, /redis:\/\/ or rediss:\/\//],
    [
      "Redis in the open in production",
      { OCTOMESH_PRODUCTION: "true", REDIS_URL: "redis://redis.example.com:6379" },
      /rediss:\/\/ in production/,
    ],
    ["PROXY protocol of nobody", { OCTOMESH_PROXY_PROTOCOL: "true" }, /OCTOMESH_TRUSTED_PROXIES/],
    ["every origin", { OCTOMESH_CORS_ORIGINS: "*" }, /OCTOMESH_CORS_ORIGINS/],
    ["an origin with a path", { OCTOMESH_CORS_ORIGINS: "https://app.example.com/" }, /OCTOMESH_CORS_ORIGINS/],
    ["a grace beyond an hour", { OCTOMESH_DRAIN_GRACE: "48h" }, /OCTOMESH_DRAIN_GRACE/],
    ["a proxy that is no network", { OCTOMESH_TRUSTED_PROXIES: "proxy.example.com" }, /OCTOMESH_TRUSTED_PROXIES/],
  ])("refuses %s", (_, environment, expected) => {
    expect(problems(environment).join("\n")).toMatch(expected);
  });

  test("shows no secret in a problem", () => {
    const text = problems({ REDIS_URL: "http://user:secret-1@redis", OCTOMESH_MASTER_KEY: "secret-2" }).join();
    expect(text).not.toMatch(/secret-/);
  });

  test("lets Redis on this machine be plain in production", () => {
    const found = problems({ OCTOMESH_PRODUCTION: "true", REDIS_URL: "redis://[::1]:6379" });
    expect(found.some((problem) => problem.startsWith("REDIS_URL"))).toBe(false);
  });
});

describe("where the verdict service is reached", () => {
  const files = { OCTOMESH_TLS_KEY_FILE: "k", OCTOMESH_TLS_CERT_FILE: "c", OCTOMESH_TLS_BUNDLE_FILE: "b" };
  const production = { OCTOMESH_PRODUCTION: "true", OCTOMESH_MASTER_KEY: "key", ...files };
  const publicFiles = { OCTOMESH_PUBLIC_TLS_KEY_FILE: "k", OCTOMESH_PUBLIC_TLS_CERT_FILE: "c" };

  test("is told to every service, as a URL or by its port", () => {
    const told = readRuntimeConfig("identity", {
      OCTOMESH_VERDICT_PUBLIC_URL: "https://verdict.example.com/",
      OCTOMESH_VERDICT_PUBLIC_PORT: "8443",
    });
    expect([told.verdictUrl, told.verdictPort, told.ports.public]).toEqual(["https://verdict.example.com", 8443, 7201]);
    const untold = readRuntimeConfig("verdict", {});
    expect([untold.verdictUrl, untold.verdictPort, untold.ports.public]).toEqual([undefined, 7206, 7206]);
    expect(problems({ OCTOMESH_VERDICT_PUBLIC_URL: "http://verdict.example.com" }).join()).toMatch(/https:/);
  });

  test("needs a certificate of the operator's in production, which the other services' ports do not", () => {
    expect(() => readRuntimeConfig("verdict", production)).toThrow(/OCTOMESH_PUBLIC_TLS_KEY_FILE is not set/);
    expect(readRuntimeConfig("verdict", { ...production, ...publicFiles }).publicTls).toBeDefined();
    expect(readRuntimeConfig("identity", production).publicTls).toBeUndefined();
  });
});

test("a log level that is none is told by the configuration, and `info` until then", () => {
  expect(["debug", "loud", ""].map((level) => logLevelOf({ OCTOMESH_LOG_LEVEL: level }))).toEqual([
    "debug",
    "info",
    "info",
  ]);
  expect(logLevelOf({})).toBe("info");
});

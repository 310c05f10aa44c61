import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ConfigError } from "@octomesh/mesh/config";
import { createTestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { makeKit, type TestKit } from "../test/edge-fixture.ts";
import { readEdgeConfig } from "./edge-config.ts";
import { edgeHelp } from "./edge-help.ts";

let folder: string;
let kit: TestKit;
let test: TestKit;
let base: Record<string, string>;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "edge-config-"));
  const authority = await createTestAuthority();
  kit = await makeKit(authority);
  test = await makeKit(authority, { claims: { env: "test", mtls: "request" } });
  const file = (name: string, content: string): string => {
    writeFileSync(join(folder, name), content);
    return join(folder, name);
  };
  base = {
    OCTET_URL: "https://verdict.example:7206/",
    LICENSE: kit.license,
    ALLOWED_ORIGIN: "https://shop.example, https://www.shop.example",
    EDGE_SIGNING_KEY: kit.seed.toString("base64"),
    EDGE_SIGNING_KEY_ID: kit.signingKeyId,
    EDGE_CLIENT_CERT_FILE: file("client.pem", kit.certificate),
    EDGE_CLIENT_KEY_FILE: file("client-key.pem", kit.key),
    EDGE_TLS_CERT_FILE: file("server.pem", "x"),
    EDGE_TLS_KEY_FILE: file("server-key.pem", "x"),
  };
});

afterAll(() => rmSync(folder, { recursive: true }));

type Change = Record<string, string | undefined>;

const problemsOf = (change: Change, nowMs?: number): readonly string[] => {
  try {
    readEdgeConfig({ ...base, ...change }, nowMs);
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
};

describe("the environment of an edge", () => {
  it("has defaults for what is not required", () => {
    const config = readEdgeConfig(base);
    expect(config).toMatchObject({
      role: "edge",
      octetUrl: "https://verdict.example:7206",
      license: kit.license,
      facts: { id: kit.licenseId, orgId: kit.orgId, clientCertificate: "require" },
      host: "0.0.0.0",
      port: 8080,
      exposeVerdict: false,
      exitIp: undefined,
      debug: false,
      caFile: undefined,
      name: "edge",
      location: undefined,
      landmarks: [],
      proxyProtocol: false,
      allowPlaintext: false,
      icmp: false,
      metricsToken: undefined,
      forwardWaitMs: 1_500,
      queueMax: 10_000,
      addressLimit: 600,
      graceMs: 10_000,
      logLevel: "info",
      pathPrefix: "",
    });
    expect(config.signer.keyId).toBe(kit.signingKeyId);
    expect(config.signer.publicKey).toBe(kit.signer.publicKey);
    expect(config.origins.allows("https://www.shop.example")).toBe(true);
    expect(config.origins.allows("https://other.example")).toBe(false);
    expect(config.trustedProxies.size).toBe(0);
  });

  it("sets everything else", () => {
    const ca = join(folder, "ca.pem");
    writeFileSync(ca, "x");
    const config = readEdgeConfig({
      ...base,
      PORT: "443",
      EDGE_HOST: "127.0.0.1",
      EDGE_EXPOSE_VERDICT: "1",
      EXIT_IP: "203.0.113.5",
      EDGE_DEBUG: "true",
      OCTET_CA_FILE: ca,
      EDGE_NAME: "fra-1",
      EDGE_LOCATION: "50.11, -8.68",
      EDGE_LANDMARKS: "wss://two.example/v1/ws,wss://three.example/v1/ws",
      EDGE_TRUSTED_PROXIES: "10.0.0.0/8",
      EDGE_PROXY_PROTOCOL: "true",
      EDGE_ICMP: "yes",
      EDGE_METRICS_TOKEN: "token",
      EDGE_FORWARD_WAIT: "2s",
      EDGE_QUEUE_MAX: "5",
      EDGE_ADDRESS_LIMIT: "7",
      EDGE_GRACE: "30s",
      EDGE_LOG_LEVEL: "debug",
      EDGE_PATH_PREFIX: "/octet/",
    });
    expect(config).toMatchObject({
      port: 443,
      host: "127.0.0.1",
      exposeVerdict: true,
      exitIp: "203.0.113.5",
      debug: true,
      caFile: ca,
      name: "fra-1",
      location: { latitude: 50.11, longitude: -8.68 },
      landmarks: ["wss://two.example/v1/ws", "wss://three.example/v1/ws"],
      proxyProtocol: true,
      icmp: true,
      metricsToken: "token",
      forwardWaitMs: 2_000,
      queueMax: 5,
      addressLimit: 7,
      graceMs: 30_000,
      logLevel: "debug",
      pathPrefix: "/octet",
    });
    expect(config.trustedProxies.includes("10.1.2.3")).toBe(true);
  });

  it.each<[Change, string]>([
    [{ OCTET_URL: undefined }, "OCTET_URL is not set"],
    [{ OCTET_URL: "verdict.example" }, "OCTET_URL is"],
    [{ OCTET_URL: "http://verdict.example" }, "OCTET_URL is plain http"],
    [{ LICENSE: undefined }, "LICENSE is not set"],
    [{ LICENSE: "octet_live_x" }, "LICENSE is no licence"],
    [{ PORT: "70000" }, "PORT is"],
    [{ EDGE_ROLE: "relay" }, "EDGE_ROLE is"],
    [{ ALLOWED_ORIGIN: undefined }, "ALLOWED_ORIGIN is not set"],
    [{ ALLOWED_ORIGIN: "shop.example" }, "ALLOWED_ORIGIN: origins"],
    [{ ALLOWED_ORIGIN: "*,https://shop.example" }, "ALLOWED_ORIGIN: origins"],
    [{ ALLOWED_ORIGIN: "https://shop.example/page" }, "ALLOWED_ORIGIN: origins"],
    [{ EDGE_TLS_KEY_FILE: undefined }, "EDGE_TLS_CERT_FILE and EDGE_TLS_KEY_FILE: both"],
    [{ EDGE_TLS_CERT_FILE: "/nowhere" }, "EDGE_TLS_CERT_FILE is"],
    [{ EDGE_TLS_CERT_FILE: undefined, EDGE_TLS_KEY_FILE: undefined }, "TLS is expected off loopback"],
    [{ EDGE_CLIENT_KEY_FILE: undefined }, "EDGE_CLIENT_CERT_FILE and EDGE_CLIENT_KEY_FILE: both"],
    [
      { EDGE_CLIENT_CERT_FILE: undefined, EDGE_CLIENT_KEY_FILE: undefined },
      "the licence requires a client certificate",
    ],
    [{ OCTET_CA_FILE: "/nowhere" }, "OCTET_CA_FILE is"],
    [{ EDGE_EXPOSE_VERDICT: "maybe" }, "EDGE_EXPOSE_VERDICT is"],
    [{ EXIT_IP: "localhost", EDGE_HOST: "127.0.0.1" }, "EXIT_IP is no address"],
    [{ EXIT_IP: "203.0.113.5" }, "EXIT_IP is for tests"],
    [{ EDGE_DEBUG: "loud" }, "EDGE_DEBUG is"],
    [{ EDGE_SIGNING_KEY: undefined }, "EDGE_SIGNING_KEY is not set"],
    [{ EDGE_SIGNING_KEY: "c2hvcnQ=" }, "EDGE_SIGNING_KEY: base64 of exactly 32 bytes"],
    [{ EDGE_SIGNING_KEY_ID: "key" }, "EDGE_SIGNING_KEY_ID:"],
    [{ EDGE_NAME: "a b" }, "EDGE_NAME:"],
    [{ EDGE_LOCATION: "91,0" }, "EDGE_LOCATION:"],
    [{ EDGE_LOCATION: "Frankfurt" }, "EDGE_LOCATION:"],
    [{ EDGE_LANDMARKS: "https://two.example" }, "EDGE_LANDMARKS: wss:// URLs"],
    [{ EDGE_LANDMARKS: Array.from({ length: 17 }, (_, i) => `wss://l${i}.example`).join() }, "EDGE_LANDMARKS: 16"],
    [{ EDGE_TRUSTED_PROXIES: "proxy" }, "EDGE_TRUSTED_PROXIES is"],
    [{ EDGE_PROXY_PROTOCOL: "true" }, "EDGE_TRUSTED_PROXIES is not set"],
    [{ EDGE_PROXY_PROTOCOL: "10.0.0.0/8" }, "EDGE_PROXY_PROTOCOL is"],
    [{ EDGE_ALLOW_PLAINTEXT: "perhaps" }, "EDGE_ALLOW_PLAINTEXT is"],
    [{ EDGE_ICMP: "2" }, "EDGE_ICMP is"],
    [{ EDGE_METRICS_TOKEN: "a", EDGE_METRICS_TOKEN_FILE: "b" }, "EDGE_METRICS_TOKEN and EDGE_METRICS_TOKEN_FILE"],
    [{ EDGE_FORWARD_WAIT: "1h" }, "EDGE_FORWARD_WAIT is"],
    [{ EDGE_QUEUE_MAX: "0" }, "EDGE_QUEUE_MAX is"],
    [{ EDGE_ADDRESS_LIMIT: "0" }, "EDGE_ADDRESS_LIMIT is"],
    [{ EDGE_GRACE: "10" }, "EDGE_GRACE is"],
    [{ EDGE_LOG_LEVEL: "chatty" }, "EDGE_LOG_LEVEL is"],
    [{ EDGE_PATH_PREFIX: "octet" }, "EDGE_PATH_PREFIX:"],
  ])("is refused with %o", (change, told) => {
    expect(problemsOf(change).join("\n")).toContain(told);
  });

  it("is refused whole, with no secret in what is said", () => {
    const problems = problemsOf({ LICENSE: "octet_live_secret", EDGE_SIGNING_KEY: "c2VjcmV0", EDGE_LOCATION: "here" });
    expect(problems).toHaveLength(3);
    expect(problems.join()).not.toMatch(/octet_live_secret|c2VjcmV0/);
  });

  it("is refused with all that is wrong, of whatever kind", () => {
    const problems = problemsOf({ PORT: "x", EDGE_ICMP: "2", LICENSE: undefined, EDGE_NAME: "a b" });
    expect(problems.map((problem) => problem.split(/[ :]/)[0])).toEqual(["PORT", "EDGE_ICMP", "LICENSE", "EDGE_NAME"]);
  });

  it("is refused once the licence has expired", () => {
    expect(problemsOf({}, Date.now() + 7_200_000).join()).toContain("LICENSE expired at");
  });

  it("may be plaintext on this machine, or where something else ends TLS", () => {
    const plain = { EDGE_TLS_CERT_FILE: undefined, EDGE_TLS_KEY_FILE: undefined };
    expect(problemsOf({ ...plain, EDGE_HOST: "127.0.0.1" })).toEqual([]);
    expect(problemsOf({ ...plain, EDGE_ALLOW_PLAINTEXT: "true" })).toEqual([]);
    expect(problemsOf({ OCTET_URL: "http://localhost:7206" })).toEqual([]);
  });

  it("needs no client certificate and allows EXIT_IP where the licence says so", () => {
    const change = { LICENSE: test.license, EDGE_CLIENT_CERT_FILE: undefined, EDGE_CLIENT_KEY_FILE: undefined };
    expect(problemsOf({ ...change, EXIT_IP: "203.0.113.5" })).toEqual([]);
  });

  it("of a landmark needs neither licence nor verdict service, but a place", () => {
    const change = {
      EDGE_ROLE: "landmark",
      OCTET_URL: undefined,
      LICENSE: undefined,
      EDGE_CLIENT_CERT_FILE: undefined,
      EDGE_CLIENT_KEY_FILE: undefined,
    };
    expect(problemsOf(change).join()).toContain("EDGE_LOCATION is not set");
    expect(problemsOf({ ...change, EDGE_LOCATION: "52.52,13.40" })).toEqual([]);
  });

  it("is in --help, every variable", () => {
    for (const name of [...Object.keys(base), "EXIT_IP", "EDGE_QUEUE_MAX", "EDGE_ROLE", "OCTET_CA_FILE", "PORT"])
      expect(edgeHelp).toContain(name);
  });
});

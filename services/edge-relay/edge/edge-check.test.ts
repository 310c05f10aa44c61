import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createHttps, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fail, Reason } from "@octomesh/mesh/errors";
import { createTestAuthority, type TestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { makeKit, type TestKit } from "../test/edge-fixture.ts";
import { startVerdictServer, type VerdictServer } from "../test/verdict-server.ts";
import { checkEdge, type Finding } from "./edge-check.ts";
import { readEdgeConfig } from "./edge-config.ts";
import { openEdgeFiles } from "./edge-files.ts";

let folder: string;
let authority: TestAuthority;
let verdict: VerdictServer;
let kit: TestKit;
let base: Record<string, string | undefined>;
let server: { key: string; certificate: string };
const keys = new Map<string, string>();
const servers: Server[] = [];

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "edge-check-"));
  authority = await createTestAuthority();
  kit = await makeKit(authority);
  keys.set(kit.signingKeyId, kit.signer.publicKey);
  verdict = await startVerdictServer({ authority, keys });
  server = await authority.issue();
  const file = (name: string, content: string): string => {
    writeFileSync(join(folder, name), content);
    return join(folder, name);
  };
  base = {
    OCTET_URL: verdict.url,
    LICENSE: kit.license,
    ALLOWED_ORIGIN: "https://shop.example",
    EDGE_SIGNING_KEY: kit.seed.toString("base64"),
    EDGE_SIGNING_KEY_ID: kit.signingKeyId,
    EDGE_CLIENT_CERT_FILE: file("client.pem", kit.certificate),
    EDGE_CLIENT_KEY_FILE: file("client-key.pem", kit.key),
    EDGE_TLS_CERT_FILE: file("server.pem", server.certificate),
    EDGE_TLS_KEY_FILE: file("server-key.pem", server.key),
    OCTET_CA_FILE: file("ca.pem", authority.bundle),
  };
});

afterAll(async () => {
  await verdict.stop();
  rmSync(folder, { recursive: true });
});

afterEach(() => {
  verdict.answer(undefined);
  vi.useRealTimers();
  for (const each of servers.splice(0)) each.close();
});

async function check(change: Record<string, string | undefined> = {}, url?: string): Promise<Map<string, Finding>> {
  const config = readEdgeConfig({ ...base, ...change });
  const findings = await checkEdge(config, openEdgeFiles(config), url);
  return new Map(findings.map((finding) => [finding.name, finding]));
}

async function serve(pair: { key: string; certificate: string }): Promise<string> {
  const https = createHttps({ key: pair.key, cert: pair.certificate }).listen(0, "127.0.0.1");
  servers.push(https);
  await once(https, "listening");
  return `https://localhost:${(https.address() as AddressInfo).port}`;
}

describe("a check", () => {
  it("finds that everything is well, and sends nothing of a session", async () => {
    const findings = await check();
    expect(findings.get("verdict service")).toMatchObject({ state: "ok", text: expect.stringContaining(verdict.url) });
    expect(findings.get("clock")).toMatchObject({ state: "ok" });
    expect(findings.get("client certificate")?.text).toContain("good until");
    if (process.platform === "linux")
      expect(findings.get("timing")).toMatchObject({ state: "ok", text: expect.stringMatching(/^whole.*--url/) });
    expect(verdict.taken.at(-1)?.bundle).toMatchObject({ sessionRef: "", sourceAddress: "" });
    expect(verdict.taken.at(-1)?.clientSubject).toContain(kit.licenseId);
  });

  it.each([
    [Reason.CREDENTIAL_REVOKED, "license_revoked"],
    [Reason.EDGE_CERTIFICATE_MISMATCH, "client_cert_mismatch"],
    [Reason.EDGE_CERTIFICATE_REQUIRED, "client_cert_required"],
    [Reason.NOT_IMPLEMENTED, "edge_unprovisioned"],
  ])("finds that the verdict service refuses the edge (%s)", async (reason, code) => {
    verdict.answer(() => {
      throw fail(reason, "no");
    });
    const finding = (await check()).get("verdict service");
    expect(finding).toMatchObject({ state: "failed", text: expect.stringMatching(new RegExp(`${code}: \\w`)) });
  });

  it("finds a signing key that is not the registered one", async () => {
    const other = await makeKit(authority);
    const findings = await check({ EDGE_SIGNING_KEY: other.seed.toString("base64") });
    expect(findings.get("verdict service")?.text).toContain("edge_signature_invalid");
    const unknown = await check({ EDGE_SIGNING_KEY_ID: other.signingKeyId });
    expect(unknown.get("verdict service")?.text).toContain("edge_key_unknown");
  });

  it("finds a service that fails, that limits, or that is none", async () => {
    verdict.answer(() => {
      throw fail(Reason.INTERNAL, "no");
    });
    expect((await check()).get("verdict service")).toMatchObject({ state: "failed" });
    verdict.answer(() => {
      throw fail(Reason.RATE_LIMITED, "no");
    });
    expect((await check()).get("verdict service")).toMatchObject({ state: "warning" });
    verdict.answer(() => ({ ok: true }));
    expect((await check()).get("verdict service")).toMatchObject({ state: "failed" });
  });

  it("finds a verdict service that is out of reach, or whose certificate nobody vouches for", async () => {
    const gone = await startVerdictServer({ authority, keys });
    await gone.stop();
    const findings = await check({ OCTET_URL: gone.url });
    expect(findings.get("verdict service")).toMatchObject({
      state: "failed",
      text: expect.stringContaining("ECONNREFUSED"),
    });
    expect(findings.get("clock")).toMatchObject({ state: "warning" });
    const distrusted = await check({ OCTET_CA_FILE: undefined });
    expect(distrusted.get("verdict service")).toMatchObject({
      state: "failed",
      text: expect.stringMatching(/out of reach \([A-Z_]*(?:CERT|SIGNATURE|ISSUER|SELF)[A-Z_]*\)/),
    });
  });

  it.each([
    [5_000, "warning", "ahead of"],
    [-5_000, "warning", "behind"],
    [120_000, "failed", "ahead of"],
  ])("finds a clock that is %s ms off", async (skewMs, state, text) => {
    const config = readEdgeConfig(base);
    const files = openEdgeFiles(config);
    const real = Date.now;
    const spy = vi.spyOn(Date, "now").mockImplementation(() => real() + skewMs);
    try {
      const findings = await checkEdge(config, files);
      const clock = findings.find(({ name }) => name === "clock");
      expect(clock).toMatchObject({ state, text: expect.stringContaining(text) });
    } finally {
      spy.mockRestore();
    }
  });

  it("finds whose TLS pages reach", async () => {
    const own = await check({}, await serve(server));
    expect(own.get("public URL")).toMatchObject({ state: "ok" });
    const other = await check({}, await serve(await authority.issue()));
    expect(other.get("public URL")).toMatchObject({
      state: "warning",
      text: expect.stringContaining("a proxy ends TLS"),
    });
    expect(other.get("timing")).toMatchObject({ state: "warning", text: expect.stringMatching(/^none/) });
    expect((await check({}, "http://edge.example")).get("public URL")).toMatchObject({ state: "failed" });
    expect((await check({}, "https://localhost:1")).get("public URL")).toMatchObject({ state: "failed" });
  });

  it("says what the timing is worth behind a proxy, and without TLS", async () => {
    const behind = await check({ EDGE_TRUSTED_PROXIES: "10.0.0.0/8" });
    expect(behind.get("timing")).toMatchObject({
      state: "warning",
      text: expect.stringContaining("EDGE_TRUSTED_PROXIES"),
    });
    const plain = { EDGE_TLS_CERT_FILE: undefined, EDGE_TLS_KEY_FILE: undefined, EDGE_ALLOW_PLAINTEXT: "true" };
    expect((await check(plain)).get("timing")).toMatchObject({
      state: "warning",
      text: expect.stringMatching(/^none/),
    });
  });

  it("warns of what expires soon, and looks at ICMP where that is wanted", async () => {
    const findings = await check({ EDGE_ICMP: "true" });
    expect(findings.get("licence")).toMatchObject({ state: "warning" });
    expect(findings.get("ICMP")?.state).toMatch(/ok|warning/);
  });

  it("of a landmark asks no verdict service", async () => {
    const before = verdict.taken.length;
    const findings = await check({ EDGE_ROLE: "landmark", EDGE_LOCATION: "1,2", OCTET_URL: undefined });
    expect([findings.has("verdict service"), findings.has("timing"), verdict.taken.length]).toEqual([
      false,
      true,
      before,
    ]);
  });
});

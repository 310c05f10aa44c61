import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createSecureContext } from "node:tls";
import { createTestAuthority, type TestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { afterAll, beforeAll, expect, it } from "vitest";
import { issueClient, makeKit, type TestKit } from "../test/edge-fixture.ts";
import { type EdgeConfig, readEdgeConfig } from "./edge-config.ts";
import { openEdgeFiles } from "./edge-files.ts";
import { createReloadingFiles } from "./reloading-files.ts";

let folder: string;
let authority: TestAuthority;
let kit: TestKit;
let config: EdgeConfig;
const at = (name: string): string => join(folder, name);
const put = (name: string, content: string): void => writeFileSync(at(name), content);

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "edge-files-"));
  authority = await createTestAuthority();
  kit = await makeKit(authority);
});

afterAll(() => rmSync(folder, { recursive: true }));

async function prepare(): Promise<void> {
  const server = await authority.issue();
  put("server.pem", server.certificate);
  put("server-key.pem", server.key);
  put("client.pem", kit.certificate);
  put("client-key.pem", kit.key);
  put("ca.pem", authority.bundle);
  config = readEdgeConfig({
    OCTET_URL: "https://localhost:7206",
    LICENSE: kit.license,
    ALLOWED_ORIGIN: "https://shop.example",
    EDGE_SIGNING_KEY: kit.seed.toString("base64"),
    EDGE_SIGNING_KEY_ID: kit.signingKeyId,
    EDGE_CLIENT_CERT_FILE: at("client.pem"),
    EDGE_CLIENT_KEY_FILE: at("client-key.pem"),
    EDGE_TLS_CERT_FILE: at("server.pem"),
    EDGE_TLS_KEY_FILE: at("server-key.pem"),
    OCTET_CA_FILE: at("ca.pem"),
  });
}

it("follows the client certificate and the authority, and passes half of a pair over", async () => {
  await prepare();
  const files = openEdgeFiles(config, Date.now(), 0);
  expect(files.verdictTls()).toEqual({ ca: authority.bundle, certificate: kit.certificate, key: kit.key });
  const next = await issueClient(authority, kit.orgId, kit.licenseId);
  put("client.pem", next.certificate);
  expect(files.verdictTls().certificate).toBe(kit.certificate);
  put("client-key.pem", next.key);
  expect(files.verdictTls()).toMatchObject({ certificate: next.certificate, key: next.key });
  const other = await createTestAuthority();
  put("ca.pem", other.bundle);
  expect(files.verdictTls().ca).toBe(other.bundle);
  put("ca.pem", "nonsense");
  expect(files.verdictTls().ca).toBe(other.bundle);
  const foreign = await makeKit(authority);
  put("client.pem", foreign.certificate);
  put("client-key.pem", foreign.key);
  expect(files.verdictTls().certificate).toBe(next.certificate);
  rmSync(at("client.pem"));
  expect(files.verdictTls().certificate).toBe(next.certificate);
  expect((files.clientExpiresMs() ?? 0) - Date.now()).toBeGreaterThan(3_000_000);
});

it("follows the server's certificate, and calls back once it is whole", async () => {
  await prepare();
  const { server } = openEdgeFiles(config, Date.now(), 10);
  const before = server?.options().cert;
  let calls = 0;
  const stop = server?.onChange?.(() => {
    calls += 1;
  });
  const next = await authority.issue();
  put("server.pem", next.certificate);
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect([calls, server?.options().cert]).toEqual([0, before]);
  put("server-key.pem", next.key);
  await expect.poll(() => calls).toBe(1);
  expect(server?.options()).toMatchObject({ cert: next.certificate, key: next.key });
  stop?.();
});

it("passes a chain over that is cut off behind its first certificate", async () => {
  await prepare();
  const { server } = openEdgeFiles(config, Date.now(), 10);
  let calls = 0;
  const stop = server?.onChange?.(() => {
    calls += 1;
    // What a listener does; it throws for a chain that cannot be read.
    const { cert, key } = server.options();
    createSecureContext({ cert, key });
  });
  const next = await authority.issue();
  put("server-key.pem", next.key);
  put("server.pem", `${next.certificate}\n${authority.bundle.slice(0, 200)}`);
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(calls).toBe(0);
  put("server.pem", `${next.certificate}\n${authority.bundle}`);
  await expect.poll(() => calls).toBe(1);
  stop?.();
});

it("refuses what cannot be used, all of it at once", async () => {
  await prepare();
  const other = await makeKit(authority);
  const expired = await issueClient(authority, kit.orgId, kit.licenseId, new Date(Date.now() - 1_000));
  const { certificate } = await authority.issue();
  put("server.pem", certificate);
  put("ca.pem", "nonsense");
  put("client-key.pem", other.key);
  expect(() => openEdgeFiles(config)).toThrow(
    /EDGE_TLS_KEY_FILE: the key of the certificate[\s\S]*OCTET_CA_FILE: certificates[\s\S]*EDGE_CLIENT_CERT_FILE and EDGE_CLIENT_KEY_FILE/,
  );
  await prepare();
  put("client.pem", other.certificate);
  put("client-key.pem", other.key);
  expect(() => openEdgeFiles(config)).toThrow(`a certificate of the licence ${kit.licenseId} is expected`);
  put("client.pem", expired.certificate);
  put("client-key.pem", expired.key);
  expect(() => openEdgeFiles(config)).toThrow("EDGE_CLIENT_CERT_FILE: the certificate expired at");
  const plain = await authority.issue();
  put("client.pem", plain.certificate);
  put("client-key.pem", plain.key);
  expect(() => openEdgeFiles(config)).toThrow("a client certificate of an edge is expected");
  await prepare();
  const old = await authority.issue({
    notBefore: new Date(Date.now() - 86_400_000),
    notAfter: new Date(Date.now() - 1_000),
  });
  put("server.pem", old.certificate);
  put("server-key.pem", old.key);
  expect(() => openEdgeFiles(config)).toThrow("EDGE_TLS_CERT_FILE: the certificate expired at");
});

it("looks at files no more often than it is told", () => {
  let [now, reads] = [0, 0];
  const read = (): number => {
    reads += 1;
    return reads;
  };
  const current = createReloadingFiles({ read, isGood: (value) => value !== 2, everyMs: 100, now: () => now });
  for (let i = 0; i < 50; i += 1) current();
  expect(reads).toBe(1);
  now = 100;
  expect([current(), reads]).toEqual([1, 2]);
  now = 200;
  expect([current(), reads]).toEqual([3, 3]);
});

import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type Client, createClient, createRouterTransport } from "@connectrpc/connect";
import { systemClock } from "@octomesh/mesh/clock";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { createMasterKey, type MasterKey } from "@octomesh/mesh/master-key";
import type { Runtime, Service } from "@octomesh/mesh/service";
import { createTestAuthority, type TestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { startTestMesh } from "@octomesh/mesh/test/mesh-fixture";
import { defaultTrustDomain } from "@octomesh/mesh/tls";
import { EdgeService } from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { Registry } from "prom-client";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { createService } from "./service.ts";
import { ask, createTestLog, makeKit, newRef, report, type TestKit } from "./test/edge-fixture.ts";
import { startVerdictServer, type VerdictServer } from "./test/verdict-server.ts";

let authority: TestAuthority;
let verdict: VerdictServer;
let kit: TestKit;
let stateDir: string;
let masterKey: MasterKey;
const services: Service[] = [];

beforeAll(async () => {
  authority = await createTestAuthority();
  kit = await makeKit(authority);
  verdict = await startVerdictServer({ authority, keys: new Map([[kit.signingKeyId, kit.signer.publicKey]]) });
});

afterAll(() => verdict.stop());

beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "edge-relay-"));
  masterKey = createMasterKey([randomBytes(32)]);
});

afterEach(async () => {
  await Promise.all(services.splice(0).map((service) => service.stop()));
  await rm(stateDir, { recursive: true, force: true });
});

interface Relay {
  readonly service: Service;
  readonly edges: Client<typeof EdgeService>;
  readonly tenants: Client<typeof TenantService>;
  readonly url: string;
  readonly logged: string[];
}

async function start(env: Record<string, string> = {}): Promise<Relay> {
  const { log, logged } = createTestLog();
  const unused = (): never => {
    throw new Error("the edge uses no such thing");
  };
  const runtime: Runtime = {
    name: "edge-relay",
    stateDir,
    log,
    clock: systemClock,
    masterKey,
    metrics: new Registry(),
    env: { OCTOMESH_EDGE_RELAY_EDGE_PORT: "0", ...env },
    trustDomain: defaultTrustDomain,
    publicUrl: "http://localhost:8080",
    verdictUrl: () => verdict.url,
    trustBundle: () => authority.bundle,
    redisUrl: undefined,
    isRevoked: () => false,
    openDatabase: unused,
    client: unused,
    clientOf: unused,
    delegated: unused,
    systemCall: unused,
  };
  const service = await createService(runtime);
  services.push(service);
  await service.start();
  const transport = createRouterTransport((router) => service.routes(router));
  return {
    service,
    edges: createClient(EdgeService, transport),
    tenants: createClient(TenantService, transport),
    url: `http://localhost:${service.ports?.().edge}`,
    logged,
  };
}

const request = (change: Record<string, unknown> = {}) => ({
  orgId: kit.orgId,
  license: kit.license,
  licenseKeyId: kit.licenseId,
  certificatePem: kit.certificate,
  privateKeyPem: kit.key,
  signingKey: new Uint8Array(kit.seed),
  signingKeyId: kit.signingKeyId,
  verdictUrl: "",
  ...change,
});

const kitFile = (): string => join(stateDir, "edge-relay", "kit");

describe("the deployment's own edge", () => {
  it("waits for its kit, and forwards once it was handed one", async () => {
    const { edges, url, logged } = await start();
    expect(await edges.getEdgeState({})).toMatchObject({ provisioned: false, orgId: "" });
    expect((await ask(`${url}/ready`)).status).toBe(503);
    expect((await report(url, newRef())).body).toEqual({ error: "edge_unprovisioned" });
    expect((await edges.provisionEdge(request())).provisioned).toBe(true);
    const state = await edges.getEdgeState({});
    expect(state).toMatchObject({
      provisioned: true,
      orgId: kit.orgId,
      licenseKeyId: kit.licenseId,
      signingKeyId: kit.signingKeyId,
    });
    const leftMs =
      timestampMs(state.expireTime ?? { $typeName: "google.protobuf.Timestamp", seconds: 0n, nanos: 0 }) - Date.now();
    expect(leftMs).toBeGreaterThan(3_500_000);
    expect(leftMs).toBeLessThan(3_600_001);
    expect((await ask(`${url}/ready`)).status).toBe(200);
    const ref = newRef();
    expect((await report(url, ref, { headers: { origin: "http://localhost:3000" } })).body).toEqual({ ok: true });
    expect(verdict.taken.at(-1)).toMatchObject({ license: kit.license, bundle: { sessionRef: ref, edgeId: "edge" } });
    expect(verdict.taken.at(-1)?.clientSubject).toContain(kit.licenseId);
    const all = logged.join("\n");
    expect(all).toContain("the edge was handed its kit");
    for (const secret of [kit.license, kit.seed.toString("base64"), "PRIVATE KEY"]) expect(all).not.toContain(secret);
  });

  it("keeps its kit sealed, readable by its owner alone, and takes it up again", async () => {
    const first = await start();
    await first.edges.provisionEdge(request());
    const file = await stat(kitFile());
    expect(file.mode & 0o777).toBe(0o600);
    expect((await stat(join(stateDir, "edge-relay"))).mode & 0o777).toBe(0o700);
    const content = (await readFile(kitFile())).toString("latin1");
    expect(content).not.toContain("octet_live");
    expect(content).not.toContain("PRIVATE KEY");
    await first.service.stop();
    const second = await start();
    expect(await second.edges.getEdgeState({})).toMatchObject({ provisioned: true, orgId: kit.orgId });
    expect((await report(second.url, newRef())).body).toEqual({ ok: true });
  });

  it("is without a kit that was changed, or sealed by another master key, and says so", async () => {
    const first = await start();
    await first.edges.provisionEdge(request());
    const sealed = await readFile(kitFile());
    sealed[sealed.length - 1] = (sealed.at(-1) ?? 0) ^ 1;
    await writeFile(kitFile(), sealed);
    const changed = await start();
    expect((await changed.edges.getEdgeState({})).provisioned).toBe(false);
    expect(changed.logged.join()).toContain("cannot be opened");
    expect((await changed.edges.provisionEdge(request())).provisioned).toBe(true);
    masterKey = createMasterKey([randomBytes(32)]);
    expect((await (await start()).edges.getEdgeState({})).provisioned).toBe(false);
  });

  it("goes on as it was when it is handed the same kit again, and changes to another", async () => {
    const { edges, url, logged } = await start();
    await edges.provisionEdge(request());
    await report(url, newRef());
    await edges.provisionEdge(request());
    expect(logged.filter((line) => line.includes("signing on"))).toHaveLength(1);
    const other = await makeKit(authority);
    await edges.provisionEdge({
      orgId: other.orgId,
      license: other.license,
      licenseKeyId: other.licenseId,
      certificatePem: other.certificate,
      privateKeyPem: other.key,
      signingKey: new Uint8Array(other.seed),
      signingKeyId: other.signingKeyId,
    });
    expect((await edges.getEdgeState({})).orgId).toBe(other.orgId);
    expect((await report(url, newRef())).body).toEqual({ error: "edge_key_unknown" });
  });

  it("forgets the kit of an organisation that is erased, and of no other", async () => {
    const { edges, tenants, url } = await start();
    await edges.provisionEdge(request());
    expect(await tenants.eraseTenant({ orgId: newId("org") })).toMatchObject({ erased: { kits: 0n }, remaining: 0n });
    expect((await edges.getEdgeState({})).provisioned).toBe(true);
    expect(await tenants.eraseTenant({ orgId: kit.orgId })).toMatchObject({ erased: { kits: 1n }, remaining: 0n });
    expect(await tenants.eraseTenant({ orgId: kit.orgId })).toMatchObject({ erased: { kits: 0n } });
    expect((await edges.getEdgeState({})).provisioned).toBe(false);
    expect((await report(url, newRef())).status).toBe(503);
    await expect(stat(kitFile())).rejects.toThrow("ENOENT");
    expect((await (await start()).edges.getEdgeState({})).provisioned).toBe(false);
  });

  it("is asked again to forget a kit whose file could not be removed", async () => {
    const { edges, tenants } = await start();
    await edges.provisionEdge(request());
    await rm(kitFile());
    await mkdir(kitFile());
    await expect(tenants.eraseTenant({ orgId: kit.orgId })).rejects.toThrow();
    await rm(kitFile(), { recursive: true });
    expect(await tenants.eraseTenant({ orgId: kit.orgId })).toMatchObject({ erased: { kits: 1n } });
    expect((await edges.getEdgeState({})).provisioned).toBe(false);
  });

  it("takes no kit whose parts do not belong together", async () => {
    const { edges } = await start();
    const other = await makeKit(authority);
    const expired = await makeKit(authority, { notAfter: new Date(Date.now() - 1_000) });
    const refused: [string, Record<string, unknown>][] = [
      ["license", { license: "octet_live_nonsense" }],
      ["org_id", { orgId: newId("org") }],
      ["license_key_id", { licenseKeyId: newId("lic") }],
      ["signing_key", { signingKey: randomBytes(31) }],
      ["certificate_pem", { certificatePem: "", privateKeyPem: "" }],
      ["private_key_pem", { privateKeyPem: "" }],
      ["private_key_pem", { privateKeyPem: other.key }],
      ["certificate_pem", { certificatePem: other.certificate, privateKeyPem: other.key }],
      ["certificate_pem", { certificatePem: (await authority.issue()).certificate }],
      ["verdict_url", { verdictUrl: "http://verdict.example" }],
      [
        "certificate_pem",
        {
          orgId: expired.orgId,
          license: expired.license,
          licenseKeyId: expired.licenseId,
          certificatePem: expired.certificate,
          privateKeyPem: expired.key,
        },
      ],
    ];
    for (const [field, change] of refused) {
      const error = await edges.provisionEdge(request(change)).catch((refusal: unknown) => refusal);
      expect([field, reasonOf(error), String(error)]).toEqual([
        field,
        Reason.VALIDATION_FAILED,
        expect.stringContaining(`${field}:`),
      ]);
    }
    expect((await edges.getEdgeState({})).provisioned).toBe(false);
    await expect(stat(kitFile())).rejects.toThrow("ENOENT");
    const without = await makeKit(authority, { claims: { mtls: "off" } });
    const taken = await edges.provisionEdge({
      orgId: without.orgId,
      license: without.license,
      licenseKeyId: without.licenseId,
      signingKey: new Uint8Array(without.seed),
      signingKeyId: without.signingKeyId,
      verdictUrl: `${verdict.url}/`,
    });
    expect(taken.provisioned).toBe(true);
  });

  it("lets pages of this machine report, and others where it is told", async () => {
    const local = await start();
    const evil = { origin: "https://evil.example" };
    expect((await report(local.url, newRef(), { headers: evil })).body).toEqual({ error: "origin_not_allowed" });
    const shop = await start({ OCTOMESH_EDGE_RELAY_ALLOWED_ORIGIN: "https://shop.example" });
    expect((await ask(`${shop.url}/v1/ping`, { headers: { origin: "https://shop.example" } })).status).toBe(204);
    expect((await ask(`${shop.url}/v1/ping`, { headers: { origin: "http://localhost" } })).status).toBe(403);
  });

  it("serves TLS from files, and shows its numbers on the runtime's port alone", async () => {
    const { key, certificate } = await authority.issue();
    await writeFile(join(stateDir, "cert.pem"), certificate);
    await writeFile(join(stateDir, "key.pem"), key);
    const { url } = await start({
      OCTOMESH_EDGE_RELAY_EDGE_TLS_CERT_FILE: join(stateDir, "cert.pem"),
      OCTOMESH_EDGE_RELAY_EDGE_TLS_KEY_FILE: join(stateDir, "key.pem"),
    });
    const ca = authority.bundle;
    expect((await ask(`${url.replace("http", "https")}/health`, { ca })).body).toMatchObject({ ok: true });
    expect((await ask(`${url.replace("http", "https")}/metrics`, { ca })).status).toBe(404);
  });

  it.each([
    [{ OCTOMESH_EDGE_RELAY_EDGE_HOST: "0.0.0.0" }, "OCTOMESH_EDGE_RELAY_EDGE_HOST"],
    [{ OCTOMESH_EDGE_RELAY_EDGE_PORT: "many" }, "OCTOMESH_EDGE_RELAY_EDGE_PORT"],
    [{ OCTOMESH_EDGE_RELAY_ALLOWED_ORIGIN: "shop.example" }, "OCTOMESH_EDGE_RELAY_ALLOWED_ORIGIN"],
    [{ OCTOMESH_EDGE_RELAY_TRUSTED_PROXIES: "anybody" }, "OCTOMESH_EDGE_RELAY_TRUSTED_PROXIES"],
    [{ OCTOMESH_EDGE_RELAY_EDGE_TLS_CERT_FILE: "/nowhere" }, "OCTOMESH_EDGE_RELAY_EDGE_TLS_CERT_FILE"],
    [{ OCTOMESH_EDGE_RELAY_EDGE_TLS_KEY_FILE: "package.json" }, "both are expected"],
  ])("does not start with %o", async (env, told) => {
    await expect(start(env)).rejects.toThrow(told);
  });

  it("runs in the mesh, and names its port there", async () => {
    const mesh = await startTestMesh({
      services: { "edge-relay": createService },
      environment: { OCTOMESH_EDGE_RELAY_EDGE_PORT: "0" },
    });
    try {
      const { edge } = mesh.service("edge-relay").ownPorts();
      expect((await ask(`http://localhost:${edge}/health`)).body).toMatchObject({ provisioned: false });
      const stranger = await fetch(`${mesh.publicUrl("edge-relay")}/octomesh.edge.v1.EdgeService/ProvisionEdge`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: "{}",
      });
      expect(stranger.ok).toBe(false);
      const admin = await fetch(`http://127.0.0.1:${mesh.service("edge-relay").ports.admin}/metrics`);
      expect(await admin.text()).toContain("octet_edge_queue_bundles");
    } finally {
      await mesh.stop();
    }
  });
});

import { createPrivateKey, createPublicKey, X509Certificate } from "node:crypto";
import { verifyLicense } from "@octomesh/mesh/edge-license";
import { Reason } from "@octomesh/mesh/errors";
import { acquireLease, type Lease, releaseLease } from "@octomesh/mesh/lease";
import type { ProvisionEdgeRequest } from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";
import {
  CredentialService,
  WatchRevocationsResponse_Revocation_Subject as Subject,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { EdgeCredentialService } from "@octomesh/proto/octomesh/identity/v1/edge_credential_service_pb";
import { LicenseKey_ClientCertificateMode as Mode } from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { sql } from "kysely";
import { PublicKeyFromCryptoKey } from "paseto/v4/public";
import pg from "pg";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import type { Dependencies } from "./dependencies.ts";
import { edgeCertificateMs } from "./lifetimes.ts";
import { builtInEdgeName, createEdgeProvisioner, type EdgeProvisioner, replacedKitMs } from "./provision-edge.ts";
import { createFakeEdge, type FakeEdge } from "./test/fake-edge.ts";
import { refusalOf, startTestIdentity, type TestIdentity, type TestOrganization } from "./test/identity-fixture.ts";
import { showCertificate } from "./test/show-certificate.ts";

const identity = await startTestIdentity();
const acme = await identity.setUp();
/** Meshes whose edge is there when they are set up, comes later, and loses its organisations. */
const [prompt, patient, fleeting] = [await startTestIdentity(), await startTestIdentity(), await startTestIdentity()];
const trustDomain = "octomesh.test";
const never = new AbortController().signal;

/** Reads a kit as the verdict service takes it: licence, certificate and signing key must be good and fit together. */
async function readKit(identity: TestIdentity, kit: ProvisionEdgeRequest) {
  const verdict = identity.client(CredentialService, { peer: "verdict" });
  const trust = await verdict.getEdgeTrust({});
  const license = await verifyLicense(kit.license, {
    trust: {
      async licenseKey(keyId) {
        const found = trust.licenseKeys.find((each) => each.keyId === keyId);
        const raw = new Uint8Array(found?.publicKey ?? []);
        return PublicKeyFromCryptoKey(await crypto.subtle.importKey("raw", raw, "Ed25519", true, ["verify"]));
      },
    },
    issuer: trustDomain,
    clock: { now: () => Date.now() + identity.time.offsetMs },
  });
  const signingKey = await verdict.getEdgeSigningKey({ id: kit.signingKeyId });
  const d = Buffer.from(kit.signingKey).toString("base64url");
  const seed = createPrivateKey({ key: { kty: "OKP", crv: "Ed25519", d, x: "" }, format: "jwk" });
  const derived = createPublicKey(seed.export({ format: "pem", type: "pkcs8" })).export({ format: "jwk" }).x;
  const certificate = new X509Certificate(kit.certificatePem);
  return {
    license,
    signingKey,
    signs: derived === Buffer.from(signingKey.publicKey).toString("base64url"),
    holdsCertificate: certificate.checkPrivateKey(createPrivateKey(kit.privateKeyPem)),
    authorities: trust.certificateAuthoritiesPem,
    certificateId: certificate.subject.match(/CN=(\S+)/)?.[1] ?? "",
  };
}

async function kitsOf(identity: TestIdentity): Promise<string[]> {
  const rows = await identity.database.system((tx) =>
    tx.selectFrom("embedded_edges").select("license_key_id").orderBy("provision_time").execute(),
  );
  return rows.map((row) => row.license_key_id);
}

async function auditActions(identity: TestIdentity, licenseKeyId: string) {
  const { rows } = await identity.database.system((tx) =>
    sql<{ action: string; actor_kind: string; actor_id: string; org_id: string; metadata: Record<string, string> }>`
      select action, actor_kind, actor_id, org_id, metadata from audit_outbox
      where resource_id = ${licenseKeyId} order by sequence`.execute(tx),
  );
  return rows;
}

describe("the service", () => {
  it("hands the edge its kit right after the set-up, and looks after it", async () => {
    prompt.edge.isAway = false;
    const org = await prompt.setUp();
    await vi.waitFor(() => expect(prompt.edge.kit?.orgId).toBe(org.orgId), { timeout: 4_000, interval: 20 });
    expect(prompt.edge.offered.length).toBe(1);
  });

  it("goes on trying while the edge is away", async () => {
    const org = await patient.setUp();
    await vi.waitFor(
      () =>
        expect(patient.logged.filter((line) => line.includes("could not be looked after")).length).toBeGreaterThan(1),
      { timeout: 10_000, interval: 20 },
    );
    expect(await kitsOf(patient)).toEqual([]);
    patient.edge.isAway = false;
    await vi.waitFor(() => expect(patient.edge.kit?.orgId).toBe(org.orgId), { timeout: 10_000, interval: 20 });
  });
});

describe("a turn", () => {
  let edge: FakeEdge;
  let deps: Dependencies;
  let provisioner: EdgeProvisioner;
  let lease: Lease;

  beforeAll(async () => {
    await identity.dependencies.revocations.start();
  });

  afterAll(async () => {
    await identity.dependencies.revocations.stop();
  });

  /** A replica of its own, beside the service's, whose edge stays away: with a lease and an edge of its own. */
  beforeEach(async () => {
    identity.time.offsetMs = 0;
    edge = createFakeEdge();
    edge.isAway = false;
    deps = { ...identity.dependencies, edge: () => edge.client };
    provisioner = createEdgeProvisioner(deps);
    const acquired = await acquireLease(identity.database, {
      name: expect.getState().currentTestName ?? "",
      ttlMs: 600_000,
    });
    if (acquired === undefined) throw new Error("every test has a lease of its own");
    lease = acquired;
  });

  afterEach(async () => {
    await identity.database.ingest([acme.orgId], (tx) => tx.deleteFrom("embedded_edges").execute());
  });

  const turn = () => provisioner.turn(lease, never);

  /** The kit that the edge holds now. */
  function held(): ProvisionEdgeRequest {
    if (edge.kit === undefined) throw new Error("the edge has no kit");
    return edge.kit;
  }

  function isRevoked(kit: ProvisionEdgeRequest): boolean {
    return identity.revocations.isRevoked(Subject.LICENSE_KEY, kit.licenseKeyId, 0);
  }

  it("gives an edge without a kit one that is good: licence, certificate and signing key fit together", async () => {
    expect(await turn()).toBe("provisioned");
    const kit = held();
    const read = await readKit(identity, kit);
    expect(read.license).toMatchObject({
      id: kit.licenseKeyId,
      orgId: acme.orgId,
      environment: "live",
      clientCertificate: "require",
    });
    expect(read.signingKey).toMatchObject({ id: kit.signingKeyId, licenseKeyId: kit.licenseKeyId, orgId: acme.orgId });
    expect(read).toMatchObject({ signs: true, holdsCertificate: true });
    expect(kit).toMatchObject({ orgId: acme.orgId, verdictUrl: "" });
    const shown = {
      key: kit.privateKeyPem,
      certificate: kit.certificatePem,
      authorities: read.authorities,
      trustDomain,
    };
    expect(await showCertificate(shown)).toMatchObject({ orgId: acme.orgId, licenseId: kit.licenseKeyId });

    const owner = identity.client(EdgeCredentialService, { bearer: acme.session.accessToken });
    const { licenseKeys } = await owner.listLicenseKeys({ pageSize: 1000 });
    expect(licenseKeys.find((each) => each.id === kit.licenseKeyId)).toMatchObject({
      name: builtInEdgeName,
      clientCertificate: Mode.REQUIRE,
      environment: Environment.LIVE,
    });
    expect(await auditActions(identity, kit.licenseKeyId)).toEqual([
      {
        action: "embedded_edge.provision",
        actor_kind: "system",
        actor_id: "identity",
        org_id: acme.orgId,
        metadata: { edge_certificate_id: read.certificateId, edge_signing_key_id: kit.signingKeyId },
      },
    ]);
  });

  it("leaves an edge alone whose kit is good", async () => {
    await turn();
    const kit = held();
    expect([await turn(), await turn()]).toEqual(["kept", "kept"]);
    expect(edge.offered).toEqual([kit]);
    expect(await kitsOf(identity)).toEqual([kit.licenseKeyId]);
  });

  it("keeps no private key, no licence and no seed, and logs none", async () => {
    await turn();
    const kit = held();
    const secrets = [
      kit.license.slice(-80, -20),
      kit.privateKeyPem.split("\n")[1] ?? "",
      Buffer.from(kit.signingKey).toString("hex"),
      Buffer.from(kit.signingKey).toString("base64"),
      Buffer.from(kit.signingKey).toString("base64url"),
    ];
    const tables = await identity.database.system(async (tx) => {
      const { rows } = await sql<{ name: string }>`
        select tablename as name from pg_tables where schemaname = 'identity'`.execute(tx);
      return rows.map((row) => row.name);
    });
    expect(tables).toEqual(expect.arrayContaining(["license_keys", "edge_signing_keys", "embedded_edges", "outbox"]));
    const admin = new pg.Client({ connectionString: identity.database.adminUrl });
    await admin.connect();
    try {
      for (const table of tables) {
        for (const secret of secrets) {
          const { rowCount } = await admin.query(`select from identity.${table} t where position($1 in t::text) > 0`, [
            secret,
          ]);
          expect(rowCount, table).toBe(0);
        }
      }
      // The public half is there: the search sees what is.
      const { rowCount } = await admin.query(
        "select from identity.edge_signing_keys t where position($1 in t::text) > 0",
        [kit.signingKeyId],
      );
      expect(rowCount).toBe(1);
    } finally {
      await admin.end();
    }
    for (const secret of secrets) expect(identity.logged.some((line) => line.includes(secret))).toBe(false);
  });

  it("gives another to an edge that came back without, and revokes the old one a minute later", async () => {
    await turn();
    const lost = held();
    const lostCertificate = (await readKit(identity, lost)).certificateId;
    edge.kit = undefined;
    expect(await turn()).toBe("provisioned");
    const kit = held();
    expect(kit.licenseKeyId).not.toBe(lost.licenseKeyId);
    expect(await turn()).toBe("kept");
    expect(isRevoked(lost)).toBe(false);
    identity.time.offsetMs = replacedKitMs;
    expect(await turn()).toBe("kept");
    expect(isRevoked(lost)).toBe(true);
    expect(identity.revocations.isRevoked(Subject.EDGE_CERTIFICATE, lostCertificate, 0)).toBe(true);
    expect(identity.revocations.isRevoked(Subject.EDGE_SIGNING_KEY, lost.signingKeyId, 0)).toBe(true);
    const verdict = identity.client(CredentialService, { peer: "verdict" });
    expect(await refusalOf(verdict.getEdgeSigningKey({ id: lost.signingKeyId }))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(isRevoked(kit)).toBe(false);
    expect((await readKit(identity, kit)).signs).toBe(true);
    expect(await kitsOf(identity)).toEqual([kit.licenseKeyId]);
    expect((await auditActions(identity, lost.licenseKeyId)).map((event) => event.action)).toEqual([
      "embedded_edge.provision",
      "embedded_edge.retire",
    ]);
  });

  it("renews a kit in the last third of its life, not before", async () => {
    await turn();
    const kit = held();
    identity.time.offsetMs = (edgeCertificateMs * 2) / 3 - 60_000;
    expect(await turn()).toBe("kept");
    identity.time.offsetMs = (edgeCertificateMs * 2) / 3 + 60_000;
    expect(await turn()).toBe("provisioned");
    const renewed = held();
    expect(renewed.licenseKeyId).not.toBe(kit.licenseKeyId);
    expect(await turn()).toBe("kept");
    identity.time.offsetMs += replacedKitMs;
    await turn();
    expect([isRevoked(kit), isRevoked(renewed)]).toEqual([true, false]);
  });

  it("replaces a kit of which a member revoked anything", async () => {
    const owner = identity.client(EdgeCredentialService, { bearer: acme.session.accessToken });
    await turn();
    await owner.revokeLicenseKey({ id: held().licenseKeyId });
    expect(await turn()).toBe("provisioned");
    await owner.revokeEdgeSigningKey({ id: held().signingKeyId });
    expect(await turn()).toBe("provisioned");
    await owner.revokeEdgeCertificate({ id: (await readKit(identity, held())).certificateId });
    expect(await turn()).toBe("provisioned");
    expect(await turn()).toBe("kept");
    expect(new Set(edge.offered.map((kit) => kit.licenseKeyId)).size).toBe(4);
  });

  it("replaces a kit that it does not know, as after a restored database", async () => {
    await turn();
    const kit = held();
    await identity.database.ingest([acme.orgId], (tx) => tx.deleteFrom("embedded_edges").execute());
    expect(await turn()).toBe("provisioned");
    expect(held().licenseKeyId).not.toBe(kit.licenseKeyId);
  });

  it("offers the same kit again where the edge was away or did not take it", async () => {
    edge.isAway = true;
    await expect(turn()).rejects.toThrow("edge-relay is away");
    expect(await kitsOf(identity)).toEqual([]);
    edge.isAway = false;
    edge.answer = "refuses";
    await expect(turn()).rejects.toThrow("not now");
    await expect(turn()).rejects.toThrow("not now");
    edge.answer = "takes";
    expect(await turn()).toBe("provisioned");
    expect(edge.offered.length).toBe(3);
    expect(new Set(edge.offered.map((kit) => kit.license)).size).toBe(1);
    expect(await kitsOf(identity)).toEqual([held().licenseKeyId]);
  });

  it("does not offer it once it was revoked meanwhile", async () => {
    edge.answer = "refuses";
    await expect(turn()).rejects.toThrow("not now");
    const owner = identity.client(EdgeCredentialService, { bearer: acme.session.accessToken });
    await owner.revokeLicenseKey({ id: edge.offered[0]?.licenseKeyId ?? "" });
    edge.answer = "takes";
    expect(await turn()).toBe("provisioned");
    expect(held().licenseKeyId).not.toBe(edge.offered[0]?.licenseKeyId);
  });

  it("finds a kit where it is, though the answer was lost", async () => {
    edge.answer = "takes in silence";
    await expect(turn()).rejects.toThrow("the answer was lost");
    expect(await turn()).toBe("kept");
    expect(edge.offered.length).toBe(1);
    expect((await readKit(identity, held())).signs).toBe(true);
  });

  it("revokes a kit that never arrived because its maker died, once another one is in use", async () => {
    edge.answer = "refuses";
    await expect(turn()).rejects.toThrow("not now");
    const [orphan] = edge.offered;
    if (orphan === undefined) throw new Error("a kit was offered");
    edge.answer = "takes";
    provisioner = createEdgeProvisioner(deps);
    expect(await turn()).toBe("provisioned");
    expect(held().licenseKeyId).not.toBe(orphan.licenseKeyId);
    identity.time.offsetMs = replacedKitMs;
    await turn();
    expect([isRevoked(orphan), isRevoked(held())]).toEqual([true, false]);
  });

  it("changes nothing once the lease is lost", async () => {
    const { name } = lease;
    await releaseLease(identity.database, lease);
    const successor = await acquireLease(identity.database, { name, ttlMs: 600_000, holder: "successor" });
    expect(successor).toBeDefined();
    await expect(turn()).rejects.toThrow("the lease of the built-in edge is lost");
    expect(edge.offered).toEqual([]);
    expect(await kitsOf(identity)).toEqual([]);
  });

  it("passes the edge on to the next organisation when its own is erased, and makes none where there is none", async () => {
    const own = { ...fleeting.dependencies, edge: () => edge.client };
    const acquired = await acquireLease(fleeting.database, { name: "test", ttlMs: 600_000 });
    if (acquired === undefined) throw new Error("the lease is free");
    const next = () => createEdgeProvisioner(own).turn(acquired, never);
    expect(await next()).toBe("no organization");
    expect(edge.offered).toEqual([]);
    const first = await fleeting.addOrganization("First");
    const second = await fleeting.addOrganization("Second");
    await next();
    expect(held().orgId).toBe(first.orgId);
    const erase = (org: TestOrganization, confirmation: string) =>
      fleeting.client(OrganizationService, { bearer: org.session.accessToken }).deleteOrganization({ confirmation });
    await erase(first, "First");
    expect(await next()).toBe("provisioned");
    expect(held().orgId).toBe(second.orgId);
    await erase(second, "Second");
    expect(await next()).toBe("no organization");
    expect(await kitsOf(fleeting)).toEqual([]);
  });
});

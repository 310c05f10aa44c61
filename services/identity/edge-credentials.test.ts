import { createPrivateKey, createPublicKey, generateKeyPairSync, sign, verify, X509Certificate } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { verifyLicense } from "@octomesh/mesh/edge-license";
import { Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { digestToken } from "@octomesh/mesh/opaque-token";
import * as x509 from "@octomesh/mesh/x509";
import { ApiKeyService } from "@octomesh/proto/octomesh/identity/v1/api_key_service_pb";
import {
  CredentialService,
  ResolveCredentialResponse_State as State,
  WatchRevocationsResponse_Revocation_Subject as Subject,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { EdgeCredentialService } from "@octomesh/proto/octomesh/identity/v1/edge_credential_service_pb";
import { LicenseKey_ClientCertificateMode as Mode } from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import { MemberService } from "@octomesh/proto/octomesh/identity/v1/member_service_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { CallerKind, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { sql } from "kysely";
import { InspectFooter, PublicProtocol } from "paseto";
import { PublicKeyFromCryptoKey, VerifyFactory } from "paseto/v4/public";
import { beforeEach, describe, expect, it } from "vitest";
import { edgeCertificateMs, licenseMs, revocationSlackMs } from "./lifetimes.ts";
import { refusalOf, startTestIdentity } from "./test/identity-fixture.ts";
import { showCertificate } from "./test/show-certificate.ts";
import { createSigningRequest } from "./test/signing-request.ts";

const identity = await startTestIdentity();
const acme = await identity.setUp();
const other = await identity.addOrganization("Other");
const bearer = acme.session.accessToken;
const edges = identity.client(EdgeCredentialService, { bearer });
const foreign = identity.client(EdgeCredentialService, { bearer: other.session.accessToken });
const verdict = identity.client(CredentialService, { peer: "verdict" });
const keys = identity.client(ApiKeyService, { bearer });
const trustDomain = "octomesh.test";
const { Verify } = new PublicProtocol(VerifyFactory);

beforeEach(() => {
  identity.time.offsetMs = 0;
});

/** The key of GetEdgeTrust that a licence names, as services of the mesh use it. */
async function publishedKey(keyId: string) {
  const { licenseKeys } = await verdict.getEdgeTrust({});
  const found = licenseKeys.find((each) => each.keyId === keyId);
  if (found === undefined) return undefined;
  return PublicKeyFromCryptoKey(
    await crypto.subtle.importKey("raw", new Uint8Array(found.publicKey), "Ed25519", true, ["verify"]),
  );
}

/** Reads a licence as the verdict service does. */
async function readLicense(license: string, now = Date.now()) {
  return await verifyLicense(license, {
    trust: { licenseKey: publishedKey },
    issuer: trustDomain,
    clock: { now: () => now },
  });
}

async function newLicense(name = "edge"): Promise<string> {
  return (await edges.createLicenseKey({ name })).id;
}

async function issue(licenseKeyId: string) {
  const { pem, privateKey } = await createSigningRequest();
  const certificate = await edges.issueEdgeCertificate({ licenseKeyId, csrPem: pem });
  return { ...certificate, key: privateKey.export({ format: "pem", type: "pkcs8" }).toString() };
}

function newSigningKey() {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const raw = Buffer.from(publicKey.export({ format: "jwk" }).x ?? "", "base64url");
  return { publicKey: new Uint8Array(raw), privateKey };
}

async function isPublished(id: string): Promise<boolean> {
  const reason = await refusalOf(verdict.getEdgeSigningKey({ id }));
  if (reason !== undefined && reason !== Reason.RESOURCE_NOT_FOUND) throw new Error(Reason[reason]);
  return reason === undefined;
}

async function auditOf(id: string) {
  const { rows } = await identity.database.system((tx) =>
    sql<{ action: string; org_id: string; resource_type: string; actor_id: string }>`
      select action, org_id, resource_type, actor_id from audit_outbox where resource_id = ${id} order by sequence`.execute(
      tx,
    ),
  );
  return rows;
}

async function revocationOf(orgId: string, subject: Subject, id: string) {
  return await identity.database.read(orgId, (tx) =>
    tx.selectFrom("revocations").selectAll().where("subject", "=", subject).where("id", "=", id).executeTakeFirst(),
  );
}

/** Watches revocations as a service does; answers the first about an id, and how long after the call it came. */
async function watched(id: string, revoke: () => Promise<unknown>) {
  const controller = new AbortController();
  const subscriberId = newId("evt");
  const stream = verdict.watchRevocations({ subscriberId }, { signal: controller.signal });
  let begun = 0;
  let revoking: Promise<unknown> | undefined;
  try {
    for await (const { revocations, caughtUp, cursor } of stream) {
      const found = revocations.find((each) => each.id === id);
      if (found !== undefined) return { ...found, tookMs: performance.now() - begun };
      if (!caughtUp || cursor === "" || revoking !== undefined) continue;
      begun = performance.now();
      revoking = revoke();
      // It waits for this watcher until that has left.
      revoking.catch(() => undefined);
    }
  } finally {
    controller.abort();
    await verdict.acknowledgeRevocations({ subscriberId, leaving: true });
    await revoking?.catch(() => undefined);
  }
  throw new Error("the stream ended");
}

describe("CreateLicenseKey", () => {
  it("makes a licence that verifies under the key that GetEdgeTrust publishes, and shows it once", async () => {
    const made = await edges.createLicenseKey({ name: "shop" });
    expect(made).toMatchObject({
      orgId: acme.orgId,
      name: "shop",
      clientCertificate: Mode.REQUIRE,
      environment: Environment.LIVE,
    });
    expect(made.revokeTime).toBeUndefined();
    expect(made.id).toMatch(/^lic_[a-z2-7]{26}$/);
    const created = made.createTime === undefined ? 0 : timestampMs(made.createTime);
    expect(made.expireTime === undefined ? 0 : timestampMs(made.expireTime)).toBe(created + licenseMs);

    expect(made.license).toMatch(/^octet_live_v4\.public\./);
    const token = made.license.slice("octet_live_".length);
    const { kid } = JSON.parse(new TextDecoder().decode(InspectFooter(token)));
    const key = await publishedKey(kid);
    if (key === undefined) throw new Error("the key is not published");
    const implicitAssertion = new TextEncoder().encode("octomesh-licence-v1");
    const { claims } = await Verify(key, token, { implicitAssertion });
    expect(claims).toEqual({
      iss: trustDomain,
      sub: made.id,
      org: acme.orgId,
      product: "browser",
      env: "live",
      mtls: "require",
      iat: new Date(created).toISOString(),
      exp: new Date(created + licenseMs).toISOString(),
    });
    // The signature is bound to licences, and to the key that is named.
    await expect(Verify(key, token)).rejects.toThrow();
    const body = Buffer.from(token.split(".")[2] ?? "", "base64url");
    body.writeUInt8((body[0] ?? 0) ^ 1, 0);
    const forged = `octet_live_v4.public.${body.toString("base64url")}.${token.split(".")[3]}`;
    expect(await refusalOf(readLicense(forged))).toBe(Reason.CREDENTIAL_UNKNOWN);

    const { licenseKeys } = await edges.listLicenseKeys({});
    expect(licenseKeys.find((each) => each.id === made.id)).toEqual({ ...made, license: "" });
    expect(await auditOf(made.id)).toEqual([
      { action: "license_key.create", org_id: acme.orgId, resource_type: "license_key", actor_id: acme.ownerId },
    ]);
  });

  it("says in the licence what was asked for: mode, environment, end", async () => {
    for (const [clientCertificate, mtls] of [
      [Mode.OFF, "off"],
      [Mode.REQUEST, "request"],
      [Mode.REQUIRE, "require"],
    ] as const) {
      const lifetime = { seconds: 3_600n, nanos: 0 };
      const made = await edges.createLicenseKey({
        name: "try",
        clientCertificate,
        lifetime,
        environment: Environment.TEST,
      });
      expect(made.license).toMatch(/^octet_test_/);
      expect(made).toMatchObject({ orgId: acme.testOrgId, environment: Environment.TEST, clientCertificate });
      const read = await readLicense(made.license);
      expect(read).toMatchObject({ id: made.id, orgId: acme.testOrgId, environment: "test", clientCertificate: mtls });
      expect(read.expiresMs - read.issuedMs).toBe(3_600_000);
      expect(await refusalOf(readLicense(made.license, read.expiresMs))).toBe(Reason.CREDENTIAL_EXPIRED);
    }
  });

  it("keeps neither the licence nor a private key", async () => {
    const made = await edges.createLicenseKey({ name: "secret", requestId: "secret-1" });
    const signature = made.license.slice(-80, -20);
    const stored = await identity.database.ingest([acme.orgId], async (tx) => {
      const { rows } = await sql<{ count: bigint }>`
        select (select count(*) from license_keys t where t::text like ${`%${signature}%`})
          + (select count(*) from idempotency where position(convert_to(${signature}, 'UTF8') in answer) > 0)
          as count`.execute(tx);
      return Number(rows[0]?.count);
    });
    expect(stored).toBe(0);
    expect(identity.logged.some((line) => line.includes(signature))).toBe(false);
    const { rows } = await identity.database.system((tx) =>
      sql<{ sealed: Buffer }>`
        select sealed_private_key as sealed from license_signing_keys
        union all select sealed_private_key from edge_authorities`.execute(tx),
    );
    expect(rows.length).toBe(2);
    for (const { sealed } of rows) {
      const open = () => createPrivateKey({ key: sealed, format: "der", type: "pkcs8" });
      expect(open).toThrow();
    }
  });

  it("answers a repeated request without the licence, and refuses the id for another", async () => {
    const request = { name: "once", requestId: "licence-1" };
    const [first, second] = [await edges.createLicenseKey(request), await edges.createLicenseKey(request)];
    expect(first.license).not.toBe("");
    expect(second).toEqual({ ...first, license: "" });
    expect(await refusalOf(edges.createLicenseKey({ ...request, name: "twice" }))).toBe(Reason.REQUEST_ID_REUSED);
  });

  it("refuses what is out of bounds", async () => {
    const refused = (request: Parameters<typeof edges.createLicenseKey>[0]) =>
      refusalOf(edges.createLicenseKey({ name: "edge", ...request }));
    for (const request of [
      { name: "" },
      { name: "n".repeat(101) },
      { name: "a\u0000b" },
      { lifetime: { seconds: 59n, nanos: 0 } },
      { lifetime: { seconds: 63_244_801n, nanos: 0 } },
      { clientCertificate: 9 as Mode },
      { environment: 9 as Environment },
    ]) {
      expect(await refused(request), String(request.name)).toBe(Reason.VALIDATION_FAILED);
    }
  });

  it("is for administrators and for keys of its scope, and a sandbox makes nothing live", async () => {
    const member = await identity.client(MemberService, { bearer }).addMember({ email: "m@example.com" });
    const session = await identity
      .client(SessionService, "public")
      .acceptInvitation({ invitationCode: member.invitationCode, email: "m@example.com" });
    const asMember = identity.client(EdgeCredentialService, { bearer: session.accessToken });
    expect(await refusalOf(asMember.createLicenseKey({ name: "edge" }))).toBe(Reason.ROLE_MISSING);
    expect(await refusalOf(asMember.listLicenseKeys({}))).toBe(Reason.ROLE_MISSING);

    const reader = await keys.createApiKey({ name: "r", scopes: [Scope.EDGES_READ] });
    const asReader = identity.client(EdgeCredentialService, { bearer: reader.apiKey });
    await asReader.listLicenseKeys({});
    expect(await refusalOf(asReader.createLicenseKey({ name: "edge" }))).toBe(Reason.SCOPE_MISSING);

    const sandbox = await keys.createApiKey({
      name: "t",
      scopes: [Scope.EDGES_READ, Scope.EDGES_WRITE],
      environment: Environment.TEST,
    });
    const asSandbox = identity.client(EdgeCredentialService, { bearer: sandbox.apiKey });
    const live = { name: "edge", environment: Environment.LIVE };
    expect(await refusalOf(asSandbox.createLicenseKey(live))).toBe(Reason.VALIDATION_FAILED);
    expect(await refusalOf(asSandbox.createPartnerKey(live))).toBe(Reason.VALIDATION_FAILED);
    expect(await asSandbox.createLicenseKey({ name: "edge" })).toMatchObject({ orgId: acme.testOrgId });
    const ours = await newLicense();
    expect(await refusalOf(asSandbox.revokeLicenseKey({ id: ours }))).toBe(Reason.RESOURCE_NOT_FOUND);
    const { licenseKeys } = await asSandbox.listLicenseKeys({ pageSize: 1000 });
    expect(new Set(licenseKeys.map((each) => each.orgId))).toEqual(new Set([acme.testOrgId]));
  });
});

describe("RevokeLicenseKey", () => {
  it("is in force when it is answered, for all that was issued for the licence, and can be repeated", async () => {
    const made = await edges.createLicenseKey({ name: "lost" });
    const certificate = await issue(made.id);
    const { publicKey } = newSigningKey();
    const signingKey = await edges.registerEdgeSigningKey({ licenseKeyId: made.id, publicKey });
    const { issuedMs, expiresMs } = await readLicense(made.license);
    const { isRevoked } = identity.revocations;
    expect(isRevoked(Subject.LICENSE_KEY, made.id, issuedMs)).toBe(false);
    expect(await isPublished(signingKey.id)).toBe(true);

    const revoked = await edges.revokeLicenseKey({ id: made.id });
    expect(isRevoked(Subject.LICENSE_KEY, made.id, issuedMs)).toBe(true);
    expect(isRevoked(Subject.EDGE_CERTIFICATE, certificate.id, 0)).toBe(true);
    expect(isRevoked(Subject.EDGE_SIGNING_KEY, signingKey.id, 0)).toBe(true);
    expect(await isPublished(signingKey.id)).toBe(false);
    expect(revoked).toMatchObject({ id: made.id, license: "", environment: Environment.LIVE });
    expect(revoked.revokeTime).toBeDefined();
    expect((await edges.revokeLicenseKey({ id: made.id })).revokeTime).toEqual(revoked.revokeTime);

    // A licence needs no database to be believed: the revocation must live as long as it.
    const row = await revocationOf(acme.orgId, Subject.LICENSE_KEY, made.id);
    expect(row?.forget_time.getTime()).toBe(expiresMs + revocationSlackMs);
    const csrPem = (await createSigningRequest()).pem;
    expect(await refusalOf(edges.issueEdgeCertificate({ licenseKeyId: made.id, csrPem }))).toBe(
      Reason.CREDENTIAL_REVOKED,
    );
    const key = { licenseKeyId: made.id, publicKey: newSigningKey().publicKey };
    expect(await refusalOf(edges.registerEdgeSigningKey(key))).toBe(Reason.CREDENTIAL_REVOKED);
    expect((await auditOf(made.id)).map((event) => event.action)).toEqual([
      "license_key.create",
      "license_key.revoke",
      "license_key.revoke",
    ]);
  });

  it("reaches whoever watches within a second", async () => {
    const id = await newLicense();
    const told = await watched(id, () => edges.revokeLicenseKey({ id }));
    expect(told).toMatchObject({ subject: Subject.LICENSE_KEY, orgId: acme.orgId });
    expect(told.tookMs).toBeLessThan(1_000);
  });

  it("concerns a licence that another replica made with a clock that runs ahead", async () => {
    identity.time.offsetMs = 30_000;
    const made = await edges.createLicenseKey({ name: "ahead" });
    identity.time.offsetMs = 0;
    await edges.revokeLicenseKey({ id: made.id });
    const { issuedMs } = await readLicense(made.license, Date.now() + 30_000);
    expect(identity.revocations.isRevoked(Subject.LICENSE_KEY, made.id, issuedMs)).toBe(true);
  });

  it("ends with the organisation, and outlives it as long as any licence of it could", async () => {
    const gone = await identity.addOrganization("Gone");
    const asGone = identity.client(EdgeCredentialService, { bearer: gone.session.accessToken });
    const lifetime = { seconds: 63_244_800n, nanos: 0 };
    const made = await asGone.createLicenseKey({ name: "long", lifetime, environment: Environment.TEST });
    const { publicKey } = newSigningKey();
    const key = await asGone.registerEdgeSigningKey({ licenseKeyId: made.id, publicKey });
    const { issuedMs, expiresMs } = await readLicense(made.license);
    const organizations = identity.client(OrganizationService, { bearer: gone.session.accessToken });
    await organizations.deleteOrganization({ confirmation: "Gone" });
    expect(identity.revocations.isRevoked(Subject.ORGANIZATION, gone.testOrgId, issuedMs)).toBe(true);
    expect(await isPublished(key.id)).toBe(false);
    const row = await revocationOf(gone.testOrgId, Subject.ORGANIZATION, gone.testOrgId);
    expect(row?.forget_time.getTime()).toBeGreaterThanOrEqual(expiresMs);
  });
});

describe("partner keys", () => {
  it("are shown once, stored as digests, and resolve to their organisation", async () => {
    const made = await edges.createPartnerKey({ name: "bank" });
    expect(made.partnerKey).toMatch(/^edg_partner_[0-9A-Za-z]{28}$/);
    expect(made).toMatchObject({
      orgId: acme.orgId,
      name: "bank",
      environment: Environment.LIVE,
      prefix: made.partnerKey.slice(0, 16),
    });
    const digest = new Uint8Array(digestToken(made.partnerKey));
    const resolved = { kind: CallerKind.PARTNER, orgId: acme.orgId, id: made.id, environment: Environment.LIVE };
    expect(await verdict.resolveCredential({ digest })).toMatchObject({ ...resolved, state: State.ACTIVE });
    const { partnerKeys } = await edges.listPartnerKeys({});
    expect(partnerKeys.find((each) => each.id === made.id)).toEqual({ ...made, partnerKey: "" });

    const revoked = await edges.revokePartnerKey({ id: made.id });
    expect(await verdict.resolveCredential({ digest })).toMatchObject({ ...resolved, state: State.REVOKED });
    expect(identity.revocations.isRevoked(Subject.PARTNER_KEY, made.id, 0)).toBe(true);
    expect((await revocationOf(acme.orgId, Subject.PARTNER_KEY, made.id))?.digest).toEqual(Buffer.from(digest));
    expect((await edges.revokePartnerKey({ id: made.id })).revokeTime).toEqual(revoked.revokeTime);
    expect((await auditOf(made.id)).map(({ action, resource_type: type }) => `${type} ${action}`)).toEqual([
      "partner_key partner_key.create",
      "partner_key partner_key.revoke",
      "partner_key partner_key.revoke",
    ]);
  });

  it("of the sandbox belong to the sandbox", async () => {
    const made = await edges.createPartnerKey({ name: "try", environment: Environment.TEST });
    expect(made).toMatchObject({ orgId: acme.testOrgId, environment: Environment.TEST });
    const digest = new Uint8Array(digestToken(made.partnerKey));
    expect(await verdict.resolveCredential({ digest })).toMatchObject({
      orgId: acme.testOrgId,
      environment: Environment.TEST,
    });
    expect((await auditOf(made.id)).map((event) => event.org_id)).toEqual([acme.testOrgId]);
    await edges.revokePartnerKey({ id: made.id });
    expect(await verdict.resolveCredential({ digest })).toMatchObject({ state: State.REVOKED });
  });

  it("are not made twice by a repeated request", async () => {
    const request = { name: "once", requestId: "partner-1", environment: Environment.TEST };
    const [first, second] = [await edges.createPartnerKey(request), await edges.createPartnerKey(request)];
    expect(second).toEqual({ ...first, partnerKey: "" });
  });
});

describe("IssueEdgeCertificate", () => {
  it("issues a certificate by which the edges' port knows the edge, for each kind of key", async () => {
    const { certificateAuthoritiesPem: authorities } = await verdict.getEdgeTrust({});
    const licenseKeyId = await newLicense();
    for (const algorithm of ["P-256", "P-384", "Ed25519"] as const) {
      const { pem: csrPem, privateKey } = await createSigningRequest({ algorithm });
      const made = await edges.issueEdgeCertificate({ licenseKeyId, csrPem });
      const spiffeId = `spiffe://${trustDomain}/edge/${acme.orgId}/${made.id}`;
      expect(made).toMatchObject({ orgId: acme.orgId, licenseKeyId, spiffeId });
      const key = privateKey.export({ format: "pem", type: "pkcs8" }).toString();
      const shown = { key, certificate: made.certificatePem, trustDomain };
      expect(await showCertificate({ ...shown, authorities }), algorithm).toEqual({
        spiffeId,
        orgId: acme.orgId,
        licenseId: licenseKeyId,
        certificateId: made.id,
      });
      expect(await showCertificate({ ...shown, authorities: [] })).toBeUndefined();

      const certificate = new X509Certificate(made.certificatePem);
      expect(certificate.ca).toBe(false);
      expect(certificate.keyUsage).toEqual(["1.3.6.1.5.5.7.3.2"]);
      const created = made.createTime === undefined ? 0 : timestampMs(made.createTime);
      expect(made.expireTime === undefined ? 0 : timestampMs(made.expireTime)).toBe(created + edgeCertificateMs);
      expect(Math.abs(Date.parse(certificate.validTo) - (created + edgeCertificateMs))).toBeLessThan(1_000);
      expect(await auditOf(made.id)).toMatchObject([
        { action: "edge_certificate.issue", org_id: acme.orgId, resource_type: "edge_certificate" },
      ]);
    }
  });

  it("issues none that outlives its licence, and none for one that has expired", async () => {
    const lifetime = { seconds: 3_600n, nanos: 0 };
    const made = await edges.createLicenseKey({ name: "short", lifetime });
    expect((await issue(made.id)).expireTime).toEqual(made.expireTime);
    identity.time.offsetMs = 3_600_000;
    expect(await refusalOf(issue(made.id))).toBe(Reason.CREDENTIAL_EXPIRED);
  });

  it("names the edge itself: subject, extensions and names of the request count for nothing", async () => {
    const licenseKeyId = await newLicense();
    const [victim, victimOrg] = [newId("lic"), newId("org")];
    const { pem: csrPem } = await createSigningRequest({
      name: `O=${victimOrg}, OU=${victim}, CN=${newId("ecr")}`,
      extensions: [
        new x509.BasicConstraintsExtension(true, 3, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, "2.5.29.37.0"]),
        new x509.SubjectAlternativeNameExtension([
          { type: "url", value: `spiffe://${trustDomain}/edge/${victimOrg}/${newId("ecr")}` },
          { type: "url", value: `spiffe://${trustDomain}/identity` },
          { type: "dns", value: "verdict.example.com" },
        ]),
      ],
    });
    const made = await edges.issueEdgeCertificate({ licenseKeyId, csrPem });
    const certificate = new X509Certificate(made.certificatePem);
    expect(certificate.subject.split("\n").sort()).toEqual([`CN=${made.id}`, `O=${acme.orgId}`, `OU=${licenseKeyId}`]);
    expect(certificate.subjectAltName).toBe(`URI:${made.spiffeId}`);
    expect(certificate.ca).toBe(false);
    expect(certificate.keyUsage).toEqual(["1.3.6.1.5.5.7.3.2"]);
    const usages = new x509.X509Certificate(made.certificatePem).getExtension(x509.KeyUsagesExtension)?.usages;
    expect(usages).toBe(x509.KeyUsageFlags.digitalSignature);
    expect(made.certificatePem).not.toContain(victim);
  });

  it("refuses a request that its key has not signed, and keys that are weak or unknown", async () => {
    const licenseKeyId = await newLicense();
    const refused = (csrPem: string) => refusalOf(edges.issueEdgeCertificate({ licenseKeyId, csrPem }));
    const request = await createSigningRequest();
    const body = Buffer.from(request.pem.replace(/-----[^-]+-----|\s/g, ""), "base64");
    const pemOf = (bytes: Buffer, label = "CERTIFICATE REQUEST") =>
      `-----BEGIN ${label}-----\n${bytes.toString("base64")}\n-----END ${label}-----\n`;
    expect(await refused(pemOf(body))).toBeUndefined();

    const broken = Buffer.from(body);
    broken.writeUInt8((broken.at(-1) ?? 0) ^ 1, broken.length - 1);
    expect(await refused(pemOf(broken))).toBe(Reason.VALIDATION_FAILED);
    // Another's public key, of which the asker has no private half.
    const victim = generateKeyPairSync("ec", { namedCurve: "prime256v1" }).publicKey;
    const own = createPublicKey(request.privateKey.export({ format: "pem", type: "pkcs8" }));
    const spki = { format: "der", type: "spki" } as const;
    const swapped = Buffer.from(body);
    victim.export(spki).copy(swapped, body.indexOf(own.export(spki)));
    expect(swapped.equals(body)).toBe(false);
    expect(await refused(pemOf(swapped))).toBe(Reason.VALIDATION_FAILED);

    for (const algorithm of [{ rsaBits: 1024 }, { rsaBits: 2048 }, "P-521"] as const) {
      const { pem } = await createSigningRequest({ algorithm });
      expect(await refused(pem), JSON.stringify(algorithm)).toBe(Reason.VALIDATION_FAILED);
    }
    for (const text of [
      "nonsense",
      pemOf(Buffer.alloc(0)),
      pemOf(body.subarray(0, 40)),
      pemOf(Buffer.concat([body, Buffer.alloc(8)])),
      pemOf(body, "CERTIFICATE"),
      `${pemOf(body)}${pemOf(body)}`,
      pemOf(Buffer.alloc(7_000)),
      (await issue(licenseKeyId)).certificatePem,
    ]) {
      expect(await refused(text), text.slice(0, 40)).toBe(Reason.VALIDATION_FAILED);
    }
  });

  it("issues three for a licence and no more until one is revoked", async () => {
    const licenseKeyId = await newLicense();
    const made = [await issue(licenseKeyId), await issue(licenseKeyId), await issue(licenseKeyId)];
    expect(await refusalOf(issue(licenseKeyId))).toBe(Reason.QUOTA_EXCEEDED);
    await edges.revokeEdgeCertificate({ id: made[0]?.id ?? "" });
    await issue(licenseKeyId);
    const others = await newLicense();
    const attempts = await Promise.all(Array.from({ length: 6 }, () => refusalOf(issue(others))));
    expect(attempts.filter((reason) => reason === undefined).length).toBe(3);
    expect(new Set(attempts)).toEqual(new Set([undefined, Reason.QUOTA_EXCEEDED]));
  });

  it("answers a repeated request with the same certificate", async () => {
    const licenseKeyId = await newLicense();
    const { pem: csrPem } = await createSigningRequest();
    const request = { licenseKeyId, csrPem, requestId: "certificate-1" };
    const first = await edges.issueEdgeCertificate(request);
    expect(await edges.issueEdgeCertificate(request)).toEqual(first);
    const another = { ...request, csrPem: (await createSigningRequest()).pem };
    expect(await refusalOf(edges.issueEdgeCertificate(another))).toBe(Reason.REQUEST_ID_REUSED);
  });
});

describe("RevokeEdgeCertificate", () => {
  it("is in force when it is answered, until the certificate would have expired, and leaves the licence", async () => {
    const made = await edges.createLicenseKey({ name: "edge" });
    const certificate = await issue(made.id);
    const told = await watched(certificate.id, () => edges.revokeEdgeCertificate({ id: certificate.id }));
    expect(told.subject).toBe(Subject.EDGE_CERTIFICATE);
    expect(told.tookMs).toBeLessThan(1_000);
    const revoked = await edges.revokeEdgeCertificate({ id: certificate.id });
    expect(identity.revocations.isRevoked(Subject.EDGE_CERTIFICATE, certificate.id, 0)).toBe(true);
    const row = await revocationOf(acme.orgId, Subject.EDGE_CERTIFICATE, certificate.id);
    const expires = certificate.expireTime === undefined ? 0 : timestampMs(certificate.expireTime);
    expect(row?.forget_time.getTime()).toBe(expires + revocationSlackMs);
    expect((await edges.revokeEdgeCertificate({ id: certificate.id })).revokeTime).toEqual(revoked.revokeTime);
    expect(identity.revocations.isRevoked(Subject.LICENSE_KEY, made.id, 0)).toBe(false);
  });
});

describe("edges' signing keys", () => {
  it("are published to the verdict service while they are good", async () => {
    const licenseKeyId = await newLicense();
    const { publicKey, privateKey } = newSigningKey();
    const made = await edges.registerEdgeSigningKey({ licenseKeyId, publicKey });
    expect(made).toMatchObject({ orgId: acme.orgId, licenseKeyId, publicKey });
    const found = await verdict.getEdgeSigningKey({ id: made.id });
    expect(found).toEqual(made);
    const x = Buffer.from(found.publicKey).toString("base64url");
    const signature = sign(null, Buffer.from("signals"), privateKey);
    const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
    expect(verify(null, Buffer.from("signals"), key, signature)).toBe(true);

    const told = await watched(made.id, () => edges.revokeEdgeSigningKey({ id: made.id }));
    expect(told.subject).toBe(Subject.EDGE_SIGNING_KEY);
    expect(told.tookMs).toBeLessThan(1_000);
    const revoked = await edges.revokeEdgeSigningKey({ id: made.id });
    expect(await isPublished(made.id)).toBe(false);
    expect(identity.revocations.isRevoked(Subject.EDGE_SIGNING_KEY, made.id, 0)).toBe(true);
    expect((await edges.revokeEdgeSigningKey({ id: made.id })).revokeTime).toEqual(revoked.revokeTime);
    expect(await refusalOf(edges.registerEdgeSigningKey({ licenseKeyId, publicKey }))).toBe(Reason.CREDENTIAL_REVOKED);
  });

  it("end with their licence", async () => {
    const lifetime = { seconds: 3_600n, nanos: 0 };
    const { id: licenseKeyId } = await edges.createLicenseKey({ name: "short", lifetime });
    const { id } = await edges.registerEdgeSigningKey({ licenseKeyId, publicKey: newSigningKey().publicKey });
    expect(await isPublished(id)).toBe(true);
    identity.time.offsetMs = 3_600_000;
    expect(await isPublished(id)).toBe(false);
  });

  it("belong to one licence: the same again is the same, and nobody else's", async () => {
    const [one, two] = [await newLicense(), await newLicense()];
    const { publicKey } = newSigningKey();
    const made = await edges.registerEdgeSigningKey({ licenseKeyId: one, publicKey });
    expect(await edges.registerEdgeSigningKey({ licenseKeyId: one, publicKey })).toEqual(made);
    expect(await refusalOf(edges.registerEdgeSigningKey({ licenseKeyId: two, publicKey }))).toBe(
      Reason.RESOURCE_EXISTS,
    );
    const { id: theirs } = await foreign.createLicenseKey({ name: "theirs" });
    expect(await refusalOf(foreign.registerEdgeSigningKey({ licenseKeyId: theirs, publicKey }))).toBe(
      Reason.RESOURCE_EXISTS,
    );
  });

  it("are three for a licence, and 32 bytes that prove something", async () => {
    const licenseKeyId = await newLicense();
    const register = (publicKey: Uint8Array<ArrayBuffer>) =>
      refusalOf(edges.registerEdgeSigningKey({ licenseKeyId, publicKey }));
    expect(await register(new Uint8Array(31))).toBe(Reason.VALIDATION_FAILED);
    for (const hex of [
      "00".repeat(32),
      `01${"00".repeat(31)}`,
      `01${"00".repeat(30)}80`,
      `ec${"ff".repeat(30)}7f`,
      `ee${"ff".repeat(31)}`,
      "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    ]) {
      expect(await register(new Uint8Array(Buffer.from(hex, "hex"))), hex).toBe(Reason.VALIDATION_FAILED);
    }
    for (let i = 0; i < 3; i += 1) expect(await register(newSigningKey().publicKey)).toBeUndefined();
    expect(await register(newSigningKey().publicKey)).toBe(Reason.QUOTA_EXCEEDED);
  });
});

describe("lists", () => {
  async function pageThrough(
    page: (pageToken: string) => Promise<{ ids: string[]; nextPageToken: string }>,
  ): Promise<string[]> {
    const ids: string[] = [];
    let pageToken = "";
    do {
      const next = await page(pageToken);
      expect(next.ids.length).toBeLessThanOrEqual(2);
      ids.push(...next.ids);
      pageToken = next.nextPageToken;
    } while (pageToken !== "");
    return ids;
  }

  it("page through what is live and the sandbox's together, newest first, without secrets", async () => {
    const made: string[][] = [[], []];
    for (const environment of [Environment.LIVE, Environment.TEST, Environment.LIVE]) {
      made[0]?.unshift((await edges.createLicenseKey({ name: "many", environment })).id);
      made[1]?.unshift((await edges.createPartnerKey({ name: "many", environment })).id);
    }
    const licenses = await edges.listLicenseKeys({ pageSize: 1000 });
    const partners = await edges.listPartnerKeys({ pageSize: 1000 });
    const many = (rows: readonly { id: string; name: string }[]) =>
      rows.filter((each) => each.name === "many").map((each) => each.id);
    expect(many(licenses.licenseKeys)).toEqual(made[0]);
    expect(many(partners.partnerKeys)).toEqual(made[1]);
    expect(licenses.licenseKeys.every((each) => each.license === "")).toBe(true);
    expect(partners.partnerKeys.every((each) => each.partnerKey === "")).toBe(true);
    const paged = await pageThrough(async (pageToken) => {
      const page = await edges.listLicenseKeys({ pageSize: 2, pageToken });
      return { ids: page.licenseKeys.map((each) => each.id), nextPageToken: page.nextPageToken };
    });
    expect(paged).toEqual(licenses.licenseKeys.map((each) => each.id));
    const pagedPartners = await pageThrough(async (pageToken) => {
      const page = await edges.listPartnerKeys({ pageSize: 2, pageToken });
      return { ids: page.partnerKeys.map((each) => each.id), nextPageToken: page.nextPageToken };
    });
    expect(pagedPartners).toEqual(partners.partnerKeys.map((each) => each.id));
  });

  it("of certificates and signing keys are of one licence where one is named", async () => {
    const [one, two] = [await newLicense(), await newLicense()];
    const certificates = [await issue(one), await issue(one), await issue(one)].map((each) => each.id).reverse();
    await issue(two);
    const signing: string[] = [];
    for (let i = 0; i < 3; i += 1) {
      const { publicKey } = newSigningKey();
      signing.unshift((await edges.registerEdgeSigningKey({ licenseKeyId: one, publicKey })).id);
    }
    const pagedCertificates = await pageThrough(async (pageToken) => {
      const page = await edges.listEdgeCertificates({ pageSize: 2, pageToken, licenseKeyId: one });
      return { ids: page.edgeCertificates.map((each) => each.id), nextPageToken: page.nextPageToken };
    });
    expect(pagedCertificates).toEqual(certificates);
    const pagedKeys = await pageThrough(async (pageToken) => {
      const page = await edges.listEdgeSigningKeys({ pageSize: 2, pageToken, licenseKeyId: one });
      return { ids: page.edgeSigningKeys.map((each) => each.id), nextPageToken: page.nextPageToken };
    });
    expect(pagedKeys).toEqual(signing);
    const { nextPageToken } = await edges.listEdgeCertificates({ pageSize: 2, licenseKeyId: one });
    for (const request of [{ licenseKeyId: two }, {}]) {
      const taken = edges.listEdgeCertificates({ ...request, pageSize: 2, pageToken: nextPageToken });
      expect(await refusalOf(taken)).toBe(Reason.PAGE_TOKEN_INVALID);
    }
    const all = await edges.listEdgeCertificates({ pageSize: 1000 });
    expect(new Set(all.edgeCertificates.map((each) => each.licenseKeyId)).size).toBeGreaterThan(1);
    expect(await refusalOf(edges.listEdgeCertificates({ licenseKeyId: "lic_x" }))).toBe(Reason.VALIDATION_FAILED);
  });
});

it("keeps what is another organisation's out of reach, in every method", async () => {
  const made = await edges.createLicenseKey({ name: "ours" });
  const partner = await edges.createPartnerKey({ name: "ours" });
  const certificate = await issue(made.id);
  const { publicKey } = newSigningKey();
  const signingKey = await edges.registerEdgeSigningKey({ licenseKeyId: made.id, publicKey });
  const csrPem = (await createSigningRequest()).pem;
  const key = newSigningKey().publicKey;
  for (const attempt of [
    () => foreign.revokeLicenseKey({ id: made.id }),
    () => foreign.revokePartnerKey({ id: partner.id }),
    () => foreign.revokeEdgeCertificate({ id: certificate.id }),
    () => foreign.revokeEdgeSigningKey({ id: signingKey.id }),
    () => foreign.issueEdgeCertificate({ licenseKeyId: made.id, csrPem }),
    () => foreign.registerEdgeSigningKey({ licenseKeyId: made.id, publicKey: key }),
    // The same for what does not exist at all.
    () => foreign.revokeLicenseKey({ id: newId("lic") }),
    () => foreign.revokePartnerKey({ id: newId("pky") }),
    () => foreign.revokeEdgeCertificate({ id: newId("ecr") }),
    () => foreign.revokeEdgeSigningKey({ id: newId("esk") }),
    () => foreign.issueEdgeCertificate({ licenseKeyId: newId("lic"), csrPem }),
  ]) {
    expect(await refusalOf(attempt())).toBe(Reason.RESOURCE_NOT_FOUND);
  }
  const filter = { licenseKeyId: made.id, pageSize: 1000 };
  expect((await foreign.listEdgeCertificates(filter)).edgeCertificates).toEqual([]);
  expect((await foreign.listEdgeSigningKeys(filter)).edgeSigningKeys).toEqual([]);
  const theirs = [
    ...(await foreign.listLicenseKeys({})).licenseKeys,
    ...(await foreign.listPartnerKeys({})).partnerKeys,
  ];
  expect(theirs.every((each) => each.orgId === other.orgId)).toBe(true);
  for (const [subject, id] of [
    [Subject.LICENSE_KEY, made.id],
    [Subject.PARTNER_KEY, partner.id],
    [Subject.EDGE_CERTIFICATE, certificate.id],
    [Subject.EDGE_SIGNING_KEY, signingKey.id],
  ] as const) {
    expect(identity.revocations.isRevoked(subject, id, 0), Subject[subject]).toBe(false);
  }
  expect(await isPublished(signingKey.id)).toBe(true);
});

it("tells trust and signing keys of edges to the verdict service alone", async () => {
  const rollout = identity.client(CredentialService, { peer: "rollout" });
  expect(await refusalOf(rollout.getEdgeTrust({}))).toBe(Reason.PEER_NOT_ALLOWED);
  expect(await refusalOf(rollout.getEdgeSigningKey({ id: newId("esk") }))).toBe(Reason.PEER_NOT_ALLOWED);
});

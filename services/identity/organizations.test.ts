import { randomBytes } from "node:crypto";
import { Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { serviceNames } from "@octomesh/mesh/service-name";
import { ApiKeyService } from "@octomesh/proto/octomesh/identity/v1/api_key_service_pb";
import { BootstrapTokenService } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_service_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { MemberService } from "@octomesh/proto/octomesh/identity/v1/member_service_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { ReadTokenService } from "@octomesh/proto/octomesh/identity/v1/read_token_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { Role, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import pg from "pg";
import { describe, expect, it } from "vitest";
import { refusalOf, startTestIdentity, type TestOrganization } from "./test/identity-fixture.ts";

const identity = await startTestIdentity();
const sessions = identity.client(SessionService, "public");
const clientKey = randomBytes(16).toString("hex");

/** Puts something of everything into an organisation and its sandbox. */
async function fill(org: TestOrganization) {
  const bearer = org.session.accessToken;
  const keys = identity.client(ApiKeyService, { bearer });
  const scopes = [Scope.DEVICES_ENROLL, Scope.ORG_READ];
  const liveKey = await keys.createApiKey({ name: "live", scopes, requestId: "one" });
  const testKey = await keys.createApiKey({ name: "test", scopes, environment: Environment.TEST });
  await identity.client(MemberService, { bearer }).addMember({ email: `${org.ownerId}@example.com`, role: Role.ADMIN });
  await identity.client(ReadTokenService, { bearer: liveKey.apiKey }).createReadToken({ scopes: [Scope.ORG_READ] });
  const refreshTokens: string[] = [];
  const accessTokens: string[] = [];
  for (const [orgId, key] of [
    [org.orgId, liveKey.apiKey],
    [org.testOrgId, testKey.apiKey],
  ] as const) {
    const token = await identity.client(BootstrapTokenService, { bearer: key }).createBootstrapToken({});
    const { credential } = await identity
      .client(DeviceCredentialService, { peer: "device-registry", actsFor: orgId })
      .issueDeviceCredential({
        deviceId: newId("dev"),
        deviceIdentifier: "d",
        bootstrapTokenId: token.id,
        clientKey,
        registrationId: newId("reg"),
      });
    refreshTokens.push(credential?.refreshToken ?? "");
    accessTokens.push(credential?.accessToken ?? "");
    for (const sibling of identity.siblings.values()) sibling.rows.set(orgId, 3);
  }
  return { bearers: [liveKey.apiKey, testKey.apiKey, ...accessTokens], refreshTokens };
}

/** Every row of any table that names an organisation, read behind row-level security. */
async function rowsNaming(orgIds: readonly string[]): Promise<Record<string, number>> {
  const client = new pg.Client({ connectionString: identity.database.adminUrl });
  await client.connect();
  try {
    const tables = await client.query<{ name: string }>(
      "select tablename as name from pg_tables where schemaname = 'identity' order by tablename",
    );
    const found: Record<string, number> = {};
    for (const { name } of tables.rows) {
      const { rows } = await client.query<{ count: string }>(
        `select count(*) as count from identity.${name} t where t::text ~ $1`,
        [orgIds.join("|")],
      );
      if (Number(rows[0]?.count) > 0) found[name] = Number(rows[0]?.count);
    }
    return found;
  } finally {
    await client.end();
  }
}

function callerOf(bearer: string) {
  return identity.client(SessionService, { bearer }).getCaller({});
}

describe("DeleteOrganization", () => {
  it("erases the organisation and its sandbox everywhere, and proves it", async () => {
    const acme = await identity.setUp();
    const neighbour = await identity.addOrganization("Neighbour");
    const { bearers, refreshTokens } = await fill(acme);
    const left = await fill(neighbour);
    for (const bearer of [...bearers, ...left.bearers]) await callerOf(bearer);
    const organizations = identity.client(OrganizationService, { bearer: acme.session.accessToken });
    expect(await refusalOf(organizations.deleteOrganization({ confirmation: "acme" }))).toBe(
      Reason.CONFIRMATION_MISMATCH,
    );
    const before = await rowsNaming([neighbour.orgId, neighbour.testOrgId]);

    const { erasures } = await organizations.deleteOrganization({ id: acme.orgId, confirmation: "Acme" });

    expect(erasures.map(({ service }) => service)).toEqual([...serviceNames].sort());
    expect(erasures.every(({ remaining }) => remaining === 0n)).toBe(true);
    const own = erasures.find(({ service }) => service === "identity")?.erased;
    expect(own).toMatchObject({
      organizations: 2n,
      members: 2n,
      api_keys: 2n,
      device_credentials: 2n,
      read_tokens: 1n,
    });
    expect(erasures.find(({ service }) => service === "telemetry")?.erased).toEqual({ rows: 6n });
    for (const bearer of [...bearers, acme.session.accessToken]) {
      expect(await refusalOf(callerOf(bearer))).toBe(Reason.CREDENTIAL_REVOKED);
    }
    const devices = identity.client(DeviceCredentialService, "public");
    for (const refreshToken of refreshTokens) {
      expect(await refusalOf(devices.refreshDeviceCredential({ refreshToken, clientKey }))).toBe(
        Reason.CREDENTIAL_UNKNOWN,
      );
    }
    // What stays: what keeps refusing the tokens, on its way to the services too, and the record of the deletion.
    const after = await rowsNaming([acme.orgId, acme.testOrgId]);
    expect(Object.keys(after).sort()).toEqual(["audit_outbox", "outbox", "revocations"]);
    expect(after).toMatchObject({ audit_outbox: 1, revocations: 2 });

    for (const bearer of left.bearers) await callerOf(bearer);
    expect(await rowsNaming([neighbour.orgId, neighbour.testOrgId])).toEqual(before);
  });

  it("goes on where a failure stopped it: for the owner who repeats, and by itself", async () => {
    const org = await identity.addOrganization("Fragile");
    const { bearers, refreshTokens } = await fill(org);
    const telemetry = identity.siblings.get("telemetry");
    if (telemetry === undefined) throw new Error("telemetry is a sibling");
    telemetry.isAway = true;
    const first = identity.client(OrganizationService, { bearer: org.session.accessToken });
    expect(await refusalOf(first.deleteOrganization({ confirmation: "Fragile" }))).toBe(Reason.DEPENDENCY_UNAVAILABLE);

    // Nothing of the organisation is accepted or issued any more, but its owner comes back with a refreshed session.
    for (const bearer of [...bearers, org.session.accessToken]) {
      expect(await refusalOf(callerOf(bearer))).toBe(Reason.CREDENTIAL_REVOKED);
    }
    const devices = identity.client(DeviceCredentialService, "public");
    for (const refreshToken of refreshTokens) {
      expect(await refusalOf(devices.refreshDeviceCredential({ refreshToken, clientKey }))).toBe(
        Reason.CREDENTIAL_REVOKED,
      );
    }
    const renewed = await sessions.refreshSession({ refreshToken: org.session.refreshToken });
    const keys = identity.client(ApiKeyService, { bearer: renewed.accessToken });
    expect(await refusalOf(keys.createApiKey({ name: "late", scopes: [Scope.ORG_READ] }))).toBe(
      Reason.CREDENTIAL_REVOKED,
    );
    const again = identity.client(OrganizationService, { bearer: renewed.accessToken });
    expect(await refusalOf(again.deleteOrganization({ confirmation: "Fragile" }))).toBe(Reason.DEPENDENCY_UNAVAILABLE);

    telemetry.isAway = false;
    const { erasures } = await again.deleteOrganization({ confirmation: "Fragile" });
    // What the first attempts erased is in the proof, too.
    for (const { service, erased } of erasures) if (service !== "identity") expect(erased).toEqual({ rows: 6n });
    expect(Object.keys(await rowsNaming([org.orgId, org.testOrgId])).sort()).toEqual([
      "audit_outbox",
      "outbox",
      "revocations",
    ]);
    expect(await refusalOf(sessions.refreshSession({ refreshToken: renewed.refreshToken }))).toBe(
      Reason.CREDENTIAL_UNKNOWN,
    );
  });

  it("is for owners", async () => {
    const org = await identity.addOrganization("Ruled");
    const members = identity.client(MemberService, { bearer: org.session.accessToken });
    const email = "admin@ruled.test";
    const { invitationCode } = await members.addMember({ email, role: Role.ADMIN });
    const { accessToken } = await sessions.acceptInvitation({ invitationCode, email });
    const organizations = identity.client(OrganizationService, { bearer: accessToken });
    expect(await refusalOf(organizations.deleteOrganization({ confirmation: "Ruled" }))).toBe(Reason.ROLE_MISSING);
  });
});

describe("EraseTenant", () => {
  it("erases one organisation's rows, can be repeated, and is for identity alone", async () => {
    const org = await identity.addOrganization("Erased");
    const peer = identity.client(TenantService, { peer: "identity" });
    const first = await peer.eraseTenant({ orgId: org.orgId });
    expect(first).toMatchObject({ erased: { organizations: 1n, members: 1n, sessions: 1n }, remaining: 0n });
    const second = await peer.eraseTenant({ orgId: org.orgId });
    expect(Object.values(second.erased).every((count) => count === 0n)).toBe(true);
    const foreign = identity.client(TenantService, { peer: "rollout" });
    expect(await refusalOf(foreign.eraseTenant({ orgId: org.testOrgId }))).toBe(Reason.PEER_NOT_ALLOWED);
  });
});

import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { digestToken, mintToken } from "@octomesh/mesh/opaque-token";
import { BootstrapToken_Kind, BootstrapToken_State } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_pb";
import { BootstrapTokenService } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_service_pb";
import { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import type { DeviceCredential } from "@octomesh/proto/octomesh/identity/v1/device_credential_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { CallerKind } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { createLocalJWKSet, decodeJwt, jwtVerify } from "jose";
import { sql } from "kysely";
import { beforeEach, describe, expect, it } from "vitest";
import { deviceRefreshMs, registrationGraceMs } from "./lifetimes.ts";
import { refreshGraceMs, rememberedGenerations } from "./refresh.ts";
import { refusalOf, startTestIdentity } from "./test/identity-fixture.ts";

const identity = await startTestIdentity();
const acme = await identity.setUp();
const other = await identity.addOrganization("Other");
const bearer = acme.session.accessToken;
const tokens = identity.client(BootstrapTokenService, { bearer });
const registry = identity.client(DeviceCredentialService, { peer: "device-registry", actsFor: acme.orgId });
const devices = identity.client(DeviceCredentialService, "public");

beforeEach(() => {
  identity.time.offsetMs = 0;
});

interface IssueOptions {
  deviceId?: string;
  deviceIdentifier?: string;
  bootstrapTokenId?: string;
  clientKey?: string;
  registrationId?: string;
}

function issueRequest(options: IssueOptions = {}) {
  return {
    deviceId: newId("dev"),
    deviceIdentifier: "pixel-1",
    bootstrapTokenId: "",
    clientKey: "a client's own key",
    registrationId: newId("reg"),
    ...options,
  };
}

async function issue(options: IssueOptions = {}): Promise<DeviceCredential> {
  const { credential } = await registry.issueDeviceCredential(issueRequest(options));
  if (credential === undefined) throw new Error("an issue answers a credential");
  return credential;
}

async function whoami(accessToken: string): Promise<{ kind: CallerKind; id: string }> {
  return await identity.client(SessionService, { bearer: accessToken }).getCaller({});
}

async function outcomes(calls: readonly Promise<unknown>[]) {
  const settled = await Promise.allSettled(calls);
  const reasons = settled.flatMap((each) => (each.status === "rejected" ? [reasonOf(each.reason)] : []));
  return { granted: settled.length - reasons.length, reasons: new Set(reasons) };
}

describe("IssueDeviceCredential", () => {
  it("issues an access token that the published keys verify, as the contract of tokens says", async () => {
    const deviceId = newId("dev");
    const credential = await issue({ deviceId });
    expect(credential).toMatchObject({ deviceId, orgId: acme.orgId });
    expect(credential.id).toMatch(/^crd_[a-z2-7]{26}$/);
    expect(credential.refreshToken).toMatch(/^edg_refresh_[0-9A-Za-z]{49}$/);
    const { keys } = await identity.client(CredentialService, "public").getJsonWebKeySet({});
    const { payload, protectedHeader } = await jwtVerify(
      credential.accessToken,
      createLocalJWKSet({ keys: keys.map(({ kty, crv, x, y, kid, alg, use }) => ({ kty, crv, x, y, kid, alg, use })) }),
      { issuer: "octomesh.test", audience: "octomesh", typ: "at+jwt", algorithms: ["ES256"] },
    );
    expect(protectedHeader.kid).toBe(keys[0]?.kid);
    expect(payload).toMatchObject({ sub: deviceId, org: acme.orgId, kind: "device", cid: credential.id, plan: 3 });
    expect(Number(payload.exp) * 1000 - Number(payload.iat_ms)).toBeGreaterThan(86_399_000 - 1_000);
    expect(await whoami(credential.accessToken)).toMatchObject({ kind: CallerKind.DEVICE, id: deviceId });
  });

  it("gives exactly one device of 1,000 at once a single-use token's credential", { timeout: 120_000 }, async () => {
    const token = await tokens.createBootstrapToken({});
    const { granted, reasons } = await outcomes(
      Array.from({ length: 1_000 }, () => registry.issueDeviceCredential(issueRequest({ bootstrapTokenId: token.id }))),
    );
    expect(granted).toBe(1);
    expect([...reasons]).toEqual([Reason.CREDENTIAL_USED]);
    const after = await tokens.getBootstrapToken({ id: token.id });
    expect(after).toMatchObject({ uses: 1, state: BootstrapToken_State.USED, token: "" });
  });

  it("gives exactly 100 devices of 150 at once an enrolment token's credential", { timeout: 120_000 }, async () => {
    const token = await tokens.createBootstrapToken({ kind: BootstrapToken_Kind.ENROLMENT, maxUses: 100 });
    const { granted, reasons } = await outcomes(
      Array.from({ length: 150 }, () => registry.issueDeviceCredential(issueRequest({ bootstrapTokenId: token.id }))),
    );
    expect(granted).toBe(100);
    expect([...reasons]).toEqual([Reason.CREDENTIAL_USED]);
    expect((await tokens.getBootstrapToken({ id: token.id })).uses).toBe(100);
  });

  it("passes on what the token says of its devices", async () => {
    const groupIds = [newId("grp")];
    const token = await tokens.createBootstrapToken({ approvalRequired: true, groupIds });
    const answer = await registry.issueDeviceCredential(issueRequest({ bootstrapTokenId: token.id }));
    expect(answer).toMatchObject({ approvalRequired: true, groupIds });
  });

  it("repeats a registration whose answer was lost: the same refresh token, no second use", async () => {
    const token = await tokens.createBootstrapToken({});
    const request = issueRequest({ bootstrapTokenId: token.id });
    const first = await registry.issueDeviceCredential(request);
    identity.time.offsetMs = registrationGraceMs - 5_000;
    const again = await Promise.all(Array.from({ length: 5 }, () => registry.issueDeviceCredential(request)));
    for (const { credential } of again) {
      expect(credential?.id).toBe(first.credential?.id);
      expect(credential?.refreshToken).toBe(first.credential?.refreshToken);
    }
    expect((await tokens.getBootstrapToken({ id: token.id })).uses).toBe(1);
  });

  it("repeats it for the same client key only, within the grace only, and not once the credential was renewed", async () => {
    const token = await tokens.createBootstrapToken({});
    const request = issueRequest({ bootstrapTokenId: token.id });
    const first = await registry.issueDeviceCredential(request);
    const refused = (change: IssueOptions) => refusalOf(registry.issueDeviceCredential({ ...request, ...change }));
    expect(await refused({ clientKey: "another's" })).toBe(Reason.CREDENTIAL_USED);
    expect(await refused({ clientKey: "" })).toBe(Reason.CREDENTIAL_USED);
    expect(await refused({ registrationId: newId("reg") })).toBe(Reason.CREDENTIAL_USED);
    identity.time.offsetMs = registrationGraceMs + 5_000;
    expect(await refused({})).toBe(Reason.CREDENTIAL_USED);
    identity.time.offsetMs = 0;
    const { refreshToken } = first.credential ?? { refreshToken: "" };
    await devices.refreshDeviceCredential({ refreshToken, clientKey: request.clientKey });
    expect(await refused({})).toBe(Reason.CREDENTIAL_USED);
  });

  it("does not repeat a registration without a client key: whoever holds the token might ask", async () => {
    const token = await tokens.createBootstrapToken({});
    const request = issueRequest({ bootstrapTokenId: token.id, clientKey: "" });
    await registry.issueDeviceCredential(request);
    expect(await refusalOf(registry.issueDeviceCredential(request))).toBe(Reason.CREDENTIAL_USED);
  });

  it("refuses tokens that are killed, expired, unknown, another organisation's, or not for this identifier", async () => {
    const refused = (options: IssueOptions) => refusalOf(registry.issueDeviceCredential(issueRequest(options)));
    const killed = await tokens.createBootstrapToken({});
    await tokens.revokeBootstrapToken({ id: killed.id });
    expect(await refused({ bootstrapTokenId: killed.id })).toBe(Reason.CREDENTIAL_REVOKED);
    const listed = await tokens.createBootstrapToken({ allowedIdentifiers: ["only-me"] });
    expect(await refused({ bootstrapTokenId: listed.id })).toBe(Reason.IDENTIFIER_NOT_ALLOWED);
    expect(await refused({ bootstrapTokenId: listed.id, deviceIdentifier: "only-me" })).toBeUndefined();
    expect(await refused({ bootstrapTokenId: newId("btk") })).toBe(Reason.CREDENTIAL_UNKNOWN);
    const foreign = await identity
      .client(BootstrapTokenService, { bearer: other.session.accessToken })
      .createBootstrapToken({});
    expect(await refused({ bootstrapTokenId: foreign.id })).toBe(Reason.CREDENTIAL_UNKNOWN);
    const old = await tokens.createBootstrapToken({ lifetime: { seconds: 60n, nanos: 0 } });
    identity.time.offsetMs = 61_000;
    expect(await refused({ bootstrapTokenId: old.id })).toBe(Reason.CREDENTIAL_EXPIRED);
    expect((await tokens.getBootstrapToken({ id: old.id })).state).toBe(BootstrapToken_State.EXPIRED);
  });

  it("cuts off the installation before, when a known device registers anew", async () => {
    const deviceId = newId("dev");
    const first = await issue({ deviceId });
    await whoami(first.accessToken);
    const second = await issue({ deviceId });
    expect(await refusalOf(whoami(first.accessToken))).toBe(Reason.CREDENTIAL_REVOKED);
    expect(await whoami(second.accessToken)).toMatchObject({ id: deviceId });
    const { refreshToken } = first;
    expect(await refusalOf(devices.refreshDeviceCredential({ refreshToken, clientKey: "a client's own key" }))).toBe(
      Reason.CREDENTIAL_REVOKED,
    );
  });

  it("gives tokens the life that the organisation has chosen by then", async () => {
    const organization = identity.client(OrganizationService, { bearer });
    const lifeOf = ({ accessToken }: DeviceCredential) => {
      const { exp, iat } = decodeJwt(accessToken);
      return Number(exp) - Number(iat);
    };
    const credential = await issue();
    expect(lifeOf(credential)).toBe(86_400);
    await organization.updateOrganization({ deviceTokenExpiry: { seconds: 3_600n, nanos: 0 } });
    const renewed = await devices.refreshDeviceCredential({
      refreshToken: credential.refreshToken,
      clientKey: "a client's own key",
    });
    expect(lifeOf(renewed)).toBe(3_600);
    await organization.updateOrganization({ deviceTokenExpiry: { seconds: 86_400n, nanos: 0 } });
  });

  it("is for the registry alone", async () => {
    const request = issueRequest();
    const rollout = identity.client(DeviceCredentialService, { peer: "rollout", actsFor: acme.orgId });
    expect(await refusalOf(rollout.issueDeviceCredential(request))).toBe(Reason.PEER_NOT_ALLOWED);
    const undelegated = identity.client(DeviceCredentialService, { peer: "device-registry" });
    expect(await refusalOf(undelegated.issueDeviceCredential(request))).toBe(Reason.CALLER_KIND_NOT_ALLOWED);
    const member = identity.client(DeviceCredentialService, { bearer });
    expect(await refusalOf(member.issueDeviceCredential(request))).toBe(Reason.METHOD_NOT_FOUND);
  });
});

describe("RefreshDeviceCredential", () => {
  const clientKey = "a client's own key";

  it("rotates, and gives many calls at once the same successor", async () => {
    const { refreshToken, id } = await issue();
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => devices.refreshDeviceCredential({ refreshToken, clientKey })),
    );
    const [first] = answers;
    expect(new Set(answers.map((answer) => answer.refreshToken)).size).toBe(1);
    expect(first?.id).toBe(id);
    expect(first?.refreshToken).not.toBe(refreshToken);
    for (const answer of answers) await whoami(answer.accessToken);
  });

  it("gives the same successor within the grace, and revokes the family on reuse after it", async () => {
    const { refreshToken, accessToken, id, deviceId } = await issue();
    const next = await devices.refreshDeviceCredential({ refreshToken, clientKey });
    identity.time.offsetMs = refreshGraceMs - 5_000;
    const again = await devices.refreshDeviceCredential({ refreshToken, clientKey });
    expect(again.refreshToken).toBe(next.refreshToken);
    identity.time.offsetMs = refreshGraceMs + 5_000;
    const reuse = devices.refreshDeviceCredential({ refreshToken, clientKey });
    expect(await refusalOf(reuse)).toBe(Reason.CREDENTIAL_REVOKED);
    const owner = devices.refreshDeviceCredential({ refreshToken: next.refreshToken, clientKey });
    expect(await refusalOf(owner)).toBe(Reason.CREDENTIAL_REVOKED);
    expect(await refusalOf(whoami(accessToken))).toBe(Reason.CREDENTIAL_REVOKED);
    expect(await refusalOf(whoami(next.accessToken))).toBe(Reason.CREDENTIAL_REVOKED);
    const { rows } = await identity.database.system((tx) =>
      sql<{ metadata: Record<string, string> }>`
        select metadata from audit_outbox where resource_id = ${deviceId} and action = 'device_credential.refresh'
        order by sequence desc limit 1`.execute(tx),
    );
    expect(rows).toEqual([{ metadata: { credential_id: id, credential_revoked: "reused" } }]);
  });

  it("revokes the family for another client key, and a thief gets nothing", async () => {
    const { refreshToken, accessToken } = await issue();
    const thief = devices.refreshDeviceCredential({ refreshToken, clientKey: "a thief's key" });
    expect(await refusalOf(thief)).toBe(Reason.CREDENTIAL_REVOKED);
    expect(await refusalOf(devices.refreshDeviceCredential({ refreshToken, clientKey }))).toBe(
      Reason.CREDENTIAL_REVOKED,
    );
    expect(await refusalOf(whoami(accessToken))).toBe(Reason.CREDENTIAL_REVOKED);
  });

  it("refuses what is no token, was never issued, or has expired", async () => {
    const refused = (refreshToken: string) => refusalOf(devices.refreshDeviceCredential({ refreshToken, clientKey }));
    const { refreshToken } = await issue();
    expect(await refused("edg_refresh_nonsense")).toBe(Reason.CREDENTIAL_MALFORMED);
    expect(await refused(acme.session.refreshToken)).toBe(Reason.CREDENTIAL_MALFORMED);
    expect(await refused(mintToken("edg_refresh_"))).toBe(Reason.CREDENTIAL_UNKNOWN);
    identity.time.offsetMs = deviceRefreshMs + 1_000;
    expect(await refused(refreshToken)).toBe(Reason.CREDENTIAL_EXPIRED);
  });

  it("remembers a bounded number of generations, and stores digests alone", async () => {
    let { refreshToken, id } = await issue();
    const first = refreshToken;
    for (let i = 0; i < rememberedGenerations + 3; i += 1) {
      ({ refreshToken, id } = await devices.refreshDeviceCredential({ refreshToken, clientKey }));
    }
    const rows = await identity.database.read(acme.orgId, (tx) =>
      tx.selectFrom("refresh_tokens").selectAll().where("family_id", "=", id).execute(),
    );
    expect(rows.length).toBe(rememberedGenerations);
    expect(rows.some((row) => row.digest.equals(digestToken(refreshToken)))).toBe(true);
    expect(await refusalOf(devices.refreshDeviceCredential({ refreshToken: first, clientKey }))).toBe(
      Reason.CREDENTIAL_UNKNOWN,
    );
    await devices.refreshDeviceCredential({ refreshToken, clientKey });
  });
});

describe("RevokeDeviceCredentials", () => {
  it("ends one device at once and leaves its neighbours alone", async () => {
    const [revoked, neighbour] = [await issue(), await issue()];
    await whoami(revoked.accessToken);
    await whoami(neighbour.accessToken);
    expect(await registry.revokeDeviceCredentials({ deviceId: revoked.deviceId })).toMatchObject({ revoked: 1 });
    expect(await refusalOf(whoami(revoked.accessToken))).toBe(Reason.CREDENTIAL_REVOKED);
    await whoami(neighbour.accessToken);
    expect(await registry.revokeDeviceCredentials({ deviceId: revoked.deviceId })).toMatchObject({ revoked: 0 });
  });

  it("does not reach into another organisation", async () => {
    const credential = await issue();
    const foreign = identity.client(DeviceCredentialService, { peer: "device-registry", actsFor: other.orgId });
    expect(await foreign.revokeDeviceCredentials({ deviceId: credential.deviceId })).toMatchObject({ revoked: 0 });
    const { refreshToken } = credential;
    await devices.refreshDeviceCredential({ refreshToken, clientKey: "a client's own key" });
  });

  it("lets a device that was revoked and registers again begin anew in the same millisecond", async () => {
    const { deviceId } = await issue();
    await registry.revokeDeviceCredentials({ deviceId });
    // A replica whose clock lags must still issue tokens that the revocation does not concern.
    identity.time.offsetMs = -5_000;
    const again = await issue({ deviceId });
    expect(await whoami(again.accessToken)).toMatchObject({ id: deviceId });
  });
});

describe("secrets", () => {
  it("are in no log line", () => {
    const secret = /edg_[a-z]+_[0-9A-Za-z]{28}|eyJ[\w-]+\.eyJ|client's own key/;
    expect(identity.logged.find((line) => secret.test(line))).toBeUndefined();
  });
});

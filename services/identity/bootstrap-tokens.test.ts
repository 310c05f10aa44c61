import { durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { digestToken } from "@octomesh/mesh/opaque-token";
import { AuditService } from "@octomesh/proto/octomesh/audit/v1/audit_service_pb";
import {
  type BootstrapToken,
  BootstrapToken_Kind,
  BootstrapToken_State,
} from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_pb";
import { BootstrapTokenService } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_service_pb";
import {
  CredentialService,
  ResolveCredentialResponse_State,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { CallerKind } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { describe, expect, it } from "vitest";
import { refusalOf, startTestIdentity } from "./test/identity-fixture.ts";

const identity = await startTestIdentity();
const acme = await identity.setUp();
const other = await identity.addOrganization("Other");
const bearer = acme.session.accessToken;
const tokens = identity.client(BootstrapTokenService, { bearer });
const foreign = identity.client(BootstrapTokenService, { bearer: other.session.accessToken });
const resolver = identity.client(CredentialService, { peer: "device-registry" });

function lifetimeOf(token: BootstrapToken): number {
  if (token.createTime === undefined || token.expireTime === undefined) throw new Error("a token has both times");
  return timestampMs(token.expireTime) - timestampMs(token.createTime);
}

describe("CreateBootstrapToken", () => {
  it("makes a single-use token for 15 minutes if nothing else is asked", async () => {
    const token = await tokens.createBootstrapToken({});
    expect(token).toMatchObject({ kind: BootstrapToken_Kind.SINGLE_USE, maxUses: 1, uses: 0, orgId: acme.orgId });
    expect(token.token).toMatch(/^edg_bootstrap_[0-9A-Za-z]{28}$/);
    expect(lifetimeOf(token)).toBe(15 * 60_000);
    expect((await tokens.getBootstrapToken({ id: token.id })).token).toBe("");
  });

  it("makes an enrolment token as asked, for 30 days if no life is given", async () => {
    const asked = {
      kind: BootstrapToken_Kind.ENROLMENT,
      name: "app 4.2",
      maxUses: 1_000_000,
      allowedIdentifiers: ["a", "b"],
      approvalRequired: true,
      groupIds: [newId("grp")],
    };
    const token = await tokens.createBootstrapToken(asked);
    expect(token).toMatchObject({ ...asked, state: BootstrapToken_State.ACTIVE });
    expect(lifetimeOf(token)).toBe(30 * 86_400_000);
    const lifetime = { seconds: 3_600n, nanos: 0 };
    expect(lifetimeOf(await tokens.createBootstrapToken({ ...asked, lifetime }))).toBe(durationMs(lifetime as never));
  });

  it("refuses what contradicts itself", async () => {
    const refused = (request: Parameters<typeof tokens.createBootstrapToken>[0]) =>
      refusalOf(tokens.createBootstrapToken(request));
    expect(await refused({ maxUses: 2 })).toBe(Reason.VALIDATION_FAILED);
    expect(await refused({ kind: BootstrapToken_Kind.ENROLMENT })).toBe(Reason.VALIDATION_FAILED);
    expect(await refused({ groupIds: ["grp_no"] })).toBe(Reason.VALIDATION_FAILED);
    expect(await refused({ lifetime: { seconds: 0n, nanos: 0 } })).toBe(Reason.VALIDATION_FAILED);
  });

  it("answers a repeated request with the same token's facts, without the token", async () => {
    const request = { name: "once", requestId: "r-1" };
    const [first, second] = [await tokens.createBootstrapToken(request), await tokens.createBootstrapToken(request)];
    expect(second).toEqual({ ...first, token: "" });
  });
});

describe("a bootstrap token as a credential", () => {
  it("is resolved by its digest, and admitted where bootstrap callers are, and nowhere else", async () => {
    const { id, token } = await tokens.createBootstrapToken({});
    const resolved = await resolver.resolveCredential({ digest: new Uint8Array(digestToken(token)) });
    expect(resolved).toMatchObject({
      kind: CallerKind.BOOTSTRAP,
      id,
      orgId: acme.orgId,
      state: ResolveCredentialResponse_State.ACTIVE,
    });
    const refusal = refusalOf(identity.client(SessionService, { bearer: token }).getCaller({}));
    expect(await refusal).toBe(Reason.CALLER_KIND_NOT_ALLOWED);
  });

  it("says that it was used or killed", async () => {
    const stateOf = async (token: string) =>
      (await resolver.resolveCredential({ digest: new Uint8Array(digestToken(token)) })).state;
    const used = await tokens.createBootstrapToken({});
    const registry = identity.client(DeviceCredentialService, { peer: "device-registry", actsFor: acme.orgId });
    await registry.issueDeviceCredential({
      deviceId: newId("dev"),
      deviceIdentifier: "d",
      bootstrapTokenId: used.id,
      registrationId: newId("reg"),
    });
    expect(await stateOf(used.token)).toBe(ResolveCredentialResponse_State.USED);
    await tokens.revokeBootstrapToken({ id: used.id });
    expect(await stateOf(used.token)).toBe(ResolveCredentialResponse_State.REVOKED);
    expect((await tokens.getBootstrapToken({ id: used.id })).state).toBe(BootstrapToken_State.REVOKED);
  });
});

describe("another organisation", () => {
  it("neither reads nor kills nor lists a token", async () => {
    const { id } = await tokens.createBootstrapToken({});
    expect(await refusalOf(foreign.getBootstrapToken({ id }))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await refusalOf(foreign.revokeBootstrapToken({ id }))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect((await foreign.listBootstrapTokens({})).bootstrapTokens).toEqual([]);
    expect((await tokens.getBootstrapToken({ id })).state).toBe(BootstrapToken_State.ACTIVE);
  });
});

describe("ListBootstrapTokens", () => {
  it("pages through all of them, newest first, however small the page", async () => {
    const { bootstrapTokens: all } = await tokens.listBootstrapTokens({ pageSize: 1000 });
    const paged: string[] = [];
    let pageToken = "";
    do {
      const page = await tokens.listBootstrapTokens({ pageSize: 2, pageToken });
      paged.push(...page.bootstrapTokens.map((token) => token.id));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(paged).toEqual(all.map((token) => token.id));
    expect(new Set(paged).size).toBe(paged.length);
    expect(await refusalOf(tokens.listBootstrapTokens({ pageToken: "forged.token" }))).toBe(Reason.PAGE_TOKEN_INVALID);
  });
});

describe("what this release does not serve", () => {
  it("says so, behind the same policy", async () => {
    const audit = identity.client(AuditService, { bearer });
    expect(await refusalOf(audit.listAuditEvents({}))).toBe(Reason.NOT_IMPLEMENTED);
    const anonymous = identity.client(AuditService, "public");
    expect(await refusalOf(anonymous.listAuditEvents({}))).toBe(Reason.CREDENTIAL_MISSING);
  });
});

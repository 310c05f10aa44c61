import { createHash } from "node:crypto";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { Reason } from "@octomesh/mesh/errors";
import { digestToken } from "@octomesh/mesh/opaque-token";
import { ApiKey_State } from "@octomesh/proto/octomesh/identity/v1/api_key_pb";
import { ApiKeyService } from "@octomesh/proto/octomesh/identity/v1/api_key_service_pb";
import { BootstrapTokenService } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_service_pb";
import {
  CredentialService,
  ResolveCredentialResponse_State,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { ReadTokenService } from "@octomesh/proto/octomesh/identity/v1/read_token_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { CallerKind, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { sql } from "kysely";
import { beforeEach, describe, expect, it } from "vitest";
import { maxReadTokensOfCreator } from "./store/read-tokens.ts";
import { refusalOf, startTestIdentity } from "./test/identity-fixture.ts";

const identity = await startTestIdentity();
const acme = await identity.setUp();
const other = await identity.addOrganization("Other");
const bearer = acme.session.accessToken;
const keys = identity.client(ApiKeyService, { bearer });
const foreignKeys = identity.client(ApiKeyService, { bearer: other.session.accessToken });
const resolver = identity.client(CredentialService, { peer: "rollout" });

beforeEach(() => {
  identity.time.offsetMs = 0;
});

function callerOf(key: string) {
  return identity.client(SessionService, { bearer: key }).getCaller({});
}

describe("CreateApiKey", () => {
  it("shows the key once and stores its digest", async () => {
    const key = await keys.createApiKey({ name: "ci", scopes: [Scope.ROLLOUTS_WRITE, Scope.MODELS_READ] });
    expect(key.apiKey).toMatch(/^edg_live_[0-9A-Za-z]{28}$/);
    expect(key).toMatchObject({
      orgId: acme.orgId,
      name: "ci",
      environment: Environment.LIVE,
      state: ApiKey_State.ACTIVE,
      prefix: key.apiKey.slice(0, 13),
      scopes: [Scope.MODELS_READ, Scope.ROLLOUTS_WRITE],
    });
    expect((await keys.getApiKey({ id: key.id })).apiKey).toBe("");
    const { rows } = await identity.database.system((tx) =>
      sql<{ found: boolean; digest: Buffer }>`
        select digest, api_keys::text like ${`%${key.apiKey}%`} as found from api_keys where id = ${key.id}`.execute(
        tx,
      ),
    );
    expect(rows).toEqual([{ found: false, digest: digestToken(key.apiKey) }]);
    expect(await callerOf(key.apiKey)).toMatchObject({
      kind: CallerKind.API_KEY,
      orgId: acme.orgId,
      id: key.id,
      scopes: key.scopes,
    });
  });

  it("puts test keys into the sandbox, and keeps the two apart", async () => {
    const key = await keys.createApiKey({
      name: "try",
      scopes: [Scope.ORG_READ, Scope.DEVICES_ENROLL],
      environment: Environment.TEST,
    });
    expect(key.apiKey).toMatch(/^edg_test_/);
    expect(key).toMatchObject({ orgId: acme.testOrgId, environment: Environment.TEST });
    const sandbox = await identity.client(OrganizationService, { bearer: key.apiKey }).getOrganization({});
    expect(sandbox).toMatchObject({ id: acme.testOrgId, environment: Environment.TEST, pairedId: acme.orgId });
    const liveTokens = identity.client(BootstrapTokenService, { bearer });
    const testTokens = identity.client(BootstrapTokenService, { bearer: key.apiKey });
    const token = await testTokens.createBootstrapToken({});
    expect(await refusalOf(liveTokens.getBootstrapToken({ id: token.id }))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect((await liveTokens.listBootstrapTokens({})).bootstrapTokens).toEqual([]);
    await keys.revokeApiKey({ id: key.id });
    expect(await refusalOf(callerOf(key.apiKey))).toBe(Reason.CREDENTIAL_REVOKED);
  });

  it("refuses an expiry in the past, and ends a key at its expiry", async () => {
    const past = { name: "old", scopes: [Scope.MODELS_READ], expireTime: timestampFromMs(Date.now() - 1) };
    expect(await refusalOf(keys.createApiKey(past))).toBe(Reason.VALIDATION_FAILED);
    const key = await keys.createApiKey({ ...past, expireTime: timestampFromMs(Date.now() + 60_000) });
    identity.time.offsetMs = 61_000;
    expect((await keys.getApiKey({ id: key.id })).state).toBe(ApiKey_State.EXPIRED);
    const { state } = await resolver.resolveCredential({ digest: new Uint8Array(digestToken(key.apiKey)) });
    expect(state).toBe(ResolveCredentialResponse_State.EXPIRED);
  });

  it("answers a repeated request without the key, in either environment", async () => {
    for (const environment of [Environment.LIVE, Environment.TEST]) {
      const request = { name: "once", scopes: [Scope.MODELS_READ], environment, requestId: `id-${environment}` };
      const [first, second] = [await keys.createApiKey(request), await keys.createApiKey(request)];
      expect(second).toEqual({ ...first, apiKey: "" });
    }
  });
});

describe("ListApiKeys", () => {
  it("pages through live and test keys together, newest first", async () => {
    for (const environment of [Environment.LIVE, Environment.TEST, Environment.LIVE, Environment.TEST]) {
      await keys.createApiKey({ name: "many", scopes: [Scope.MODELS_READ], environment });
    }
    const { apiKeys: all } = await keys.listApiKeys({ pageSize: 1000 });
    expect(new Set(all.map((key) => key.environment))).toEqual(new Set([Environment.LIVE, Environment.TEST]));
    expect(all.every((key) => key.apiKey === "")).toBe(true);
    const times = all.map((key) => (key.createTime === undefined ? 0 : timestampMs(key.createTime)));
    expect(times).toEqual([...times].sort((a, b) => b - a));
    const paged: string[] = [];
    let pageToken = "";
    do {
      const page = await keys.listApiKeys({ pageSize: 3, pageToken });
      paged.push(...page.apiKeys.map((key) => key.id));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(paged).toEqual(all.map((key) => key.id));
  });
});

describe("RevokeApiKey", () => {
  it("is in force everywhere when it is answered, and can be repeated", async () => {
    const key = await keys.createApiKey({ name: "leaked", scopes: [Scope.MODELS_READ] });
    await callerOf(key.apiKey);
    const revoked = await keys.revokeApiKey({ id: key.id });
    expect(revoked.state).toBe(ApiKey_State.REVOKED);
    expect(await refusalOf(callerOf(key.apiKey))).toBe(Reason.CREDENTIAL_REVOKED);
    expect((await keys.revokeApiKey({ id: key.id })).revokeTime).toEqual(revoked.revokeTime);
  });

  it("is not for another organisation's keys", async () => {
    const live = await keys.createApiKey({ name: "ours", scopes: [Scope.MODELS_READ] });
    const test = await keys.createApiKey({ name: "ours", scopes: [Scope.MODELS_READ], environment: Environment.TEST });
    for (const { id, apiKey } of [live, test]) {
      expect(await refusalOf(foreignKeys.revokeApiKey({ id }))).toBe(Reason.RESOURCE_NOT_FOUND);
      expect(await refusalOf(foreignKeys.getApiKey({ id }))).toBe(Reason.RESOURCE_NOT_FOUND);
      await callerOf(apiKey);
    }
    expect((await foreignKeys.listApiKeys({})).apiKeys).toEqual([]);
  });
});

it("refuses a name that the database cannot hold as what it is: a bad request", async () => {
  const made = keys.createApiKey({ name: "a\u0000b", scopes: [Scope.MODELS_READ] });
  expect(await refusalOf(made)).toBe(Reason.VALIDATION_FAILED);
});

describe("read tokens", () => {
  const scopes = [Scope.ORG_READ, Scope.MODELS_READ];

  it("hold read scopes of their maker and nothing else, and end with it", async () => {
    const key = await keys.createApiKey({ name: "backend", scopes: [Scope.ORG_READ, Scope.MODELS_WRITE] });
    const readTokens = identity.client(ReadTokenService, { bearer: key.apiKey });
    const refused = (wanted: Scope[]) => refusalOf(readTokens.createReadToken({ scopes: wanted }));
    expect(await refused([Scope.MODELS_WRITE])).toBe(Reason.VALIDATION_FAILED);
    expect(await refused(scopes)).toBe(Reason.SCOPE_MISSING);
    const token = await readTokens.createReadToken({ scopes: [Scope.ORG_READ] });
    expect(token.token).toMatch(/^edg_read_/);
    expect(await callerOf(token.token)).toMatchObject({ kind: CallerKind.READ_TOKEN, scopes: [Scope.ORG_READ] });
    await keys.revokeApiKey({ id: key.id });
    expect(await refusalOf(callerOf(token.token))).toBe(Reason.CREDENTIAL_REVOKED);
  });

  it("are revoked by themselves, not by another organisation, and lapse", async () => {
    const readTokens = identity.client(ReadTokenService, { bearer });
    const foreign = identity.client(ReadTokenService, { bearer: other.session.accessToken });
    const token = await readTokens.createReadToken({ scopes, lifetime: { seconds: 60n, nanos: 0 } });
    expect(await refusalOf(foreign.revokeReadToken({ id: token.id }))).toBe(Reason.RESOURCE_NOT_FOUND);
    await callerOf(token.token);
    await readTokens.revokeReadToken({ id: token.id });
    await readTokens.revokeReadToken({ id: token.id });
    expect(await refusalOf(callerOf(token.token))).toBe(Reason.CREDENTIAL_REVOKED);
  });
});

describe("the maker of a read token", () => {
  const scopes = [Scope.ORG_READ];

  it("makes none any more once it is revoked or removed, though its own credential has not been dropped yet", async () => {
    const key = await keys.createApiKey({ name: "going", scopes });
    const asKey = identity.client(ReadTokenService, { bearer: key.apiKey });
    await asKey.createReadToken({ scopes });
    const leaver = await identity.addOrganization("Leaver");
    const asMember = identity.client(ReadTokenService, { bearer: leaver.session.accessToken });
    await asMember.createReadToken({ scopes });
    // As a call finds it that waited for the revocation's transaction, before any service has heard of that.
    await identity.database.ingest([acme.orgId, leaver.orgId], async (tx) => {
      await sql`update api_keys set revoke_time = now() where id = ${key.id}`.execute(tx);
      await sql`delete from members where id = ${leaver.ownerId}`.execute(tx);
    });
    expect(await refusalOf(asKey.createReadToken({ scopes }))).toBe(Reason.CREDENTIAL_REVOKED);
    expect(await refusalOf(asMember.createReadToken({ scopes }))).toBe(Reason.CREDENTIAL_REVOKED);
  });

  it("has so many at a time and no more, so that revoking it ends them all at once", async () => {
    const key = await keys.createApiKey({ name: "busy", scopes });
    const readTokens = identity.client(ReadTokenService, { bearer: key.apiKey });
    const token = await readTokens.createReadToken({ scopes });
    await identity.database.ingest([acme.orgId], async (tx) => {
      const make = (digest: string, count: number, expire: string) =>
        sql`insert into read_tokens (org_id, id, digest, scopes, creator_id, create_time, expire_time)
          select ${acme.orgId}, ${`rdt_${digest}_`} || n, sha256((${digest} || n)::bytea), '{16}', ${key.id}, now(),
            now() + ${expire}::interval from generate_series(1, ${count}::int) n`.execute(tx);
      await make("good", maxReadTokensOfCreator - 1, "1 hour");
      await make("lapsed", 20_000, "-1 hour");
    });
    expect(await refusalOf(readTokens.createReadToken({ scopes }))).toBe(Reason.QUOTA_EXCEEDED);
    await keys.revokeApiKey({ id: key.id });
    const digests = [digestToken(token.token), createHash("sha256").update("good999").digest()];
    for (const digest of digests) {
      const { state } = await resolver.resolveCredential({ digest: new Uint8Array(digest) });
      expect(state).toBe(ResolveCredentialResponse_State.REVOKED);
    }
  });
});

describe("ResolveCredential and ReportCredentialUse", () => {
  it("are for services alone", async () => {
    const digest = new Uint8Array(32);
    const asMember = identity.client(CredentialService, { bearer });
    expect(await refusalOf(asMember.resolveCredential({ digest }))).toBe(Reason.METHOD_NOT_FOUND);
    expect(await refusalOf(resolver.resolveCredential({ digest }))).toBe(Reason.RESOURCE_NOT_FOUND);
  });

  it("moves the last use forward, never back, never into the future, and never across organisations", async () => {
    const key = await keys.createApiKey({ name: "used", scopes: [Scope.MODELS_READ] });
    const report = (lastUseMs: number, orgId = acme.orgId) =>
      resolver.reportCredentialUse({ uses: [{ id: key.id, orgId, lastUseTime: timestampFromMs(lastUseMs) }] });
    const lastUse = async () => {
      const { lastUseTime } = await keys.getApiKey({ id: key.id });
      return lastUseTime === undefined ? undefined : timestampMs(lastUseTime);
    };
    const now = Date.now();
    await report(now - 1_000, other.orgId);
    expect(await lastUse()).toBeUndefined();
    await report(now - 1_000);
    await report(now - 60_000);
    expect(await lastUse()).toBe(now - 1_000);
    await report(now + 3_600_000);
    expect(await lastUse()).toBeLessThanOrEqual(Date.now());
  });
});

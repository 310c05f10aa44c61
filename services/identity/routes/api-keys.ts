import { create } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf, withOrganization } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { digestToken, mintToken } from "@octomesh/mesh/opaque-token";
import { nameOfScope } from "@octomesh/mesh/policy";
import { type ApiKey, ApiKey_State, ApiKeySchema } from "@octomesh/proto/octomesh/identity/v1/api_key_pb";
import { ApiKeyService } from "@octomesh/proto/octomesh/identity/v1/api_key_service_pb";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import type { Dependencies } from "../dependencies.ts";
import { opaqueCacheMs } from "../lifetimes.ts";
import { inEnvironment, newestFirst, readPair } from "../organization-pair.ts";
import { readPage } from "../page.ts";
import { readTokenRevocations } from "../read-tokens.ts";
import { replayable, replayedHeader } from "../replayable.ts";
import { type ApiKeyRow, findApiKey, insertApiKey, listApiKeys, revokeApiKey } from "../store/api-keys.ts";
import { type OrganizationRow, readForIssue } from "../store/organizations.ts";

/** How much of a key people see again: its kind and the first four of its random characters. */
const shownCharacters = 4;

/** ApiKeyService. Keys of the sandbox belong to the paired organisation, where the rows and their audit events are. */
export function apiKeyRoutes(deps: Dependencies): ServiceImpl<typeof ApiKeyService> {
  const { database, clock, pager, revocations } = deps;

  /** The organisation whose key this is: the caller's own or its counterpart. Throws RESOURCE_NOT_FOUND. */
  async function findKey(orgId: string, id: string): Promise<{ row: ApiKeyRow; org: OrganizationRow }> {
    for (const org of await readPair(deps, orgId)) {
      const row = await database.read(org.org_id, (tx) => findApiKey(tx, org.org_id, id));
      if (row !== undefined) return { row, org };
    }
    throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such API key", { id });
  }

  return {
    async createApiKey(request, context) {
      const { call, environment } = await inEnvironment(deps, callOf(context), request.environment);
      const now = new Date(clock.now());
      const expireTime = request.expireTime === undefined ? null : timestampDate(request.expireTime);
      if (expireTime !== null && !(expireTime > now)) {
        throw fail(Reason.VALIDATION_FAILED, "expire_time lies in the past", { field: "expire_time" });
      }
      const key = mintToken(environment === Environment.LIVE ? "edg_live_" : "edg_test_");
      const { message, replayed } = await database.write(call, (tx) =>
        replayable(tx, call, ApiKeyService.method.createApiKey, request, async () => {
          await readForIssue(tx, call.orgId);
          const row = await insertApiKey(tx, {
            org_id: call.orgId,
            id: newId("key", now.getTime()),
            name: request.name,
            prefix: key.slice(0, "edg_live_".length + shownCharacters),
            digest: digestToken(key),
            scopes: [...request.scopes].sort((a, b) => a - b),
            creator_id: call.caller.id,
            create_time: now,
            expire_time: expireTime,
            last_use_time: null,
            revoke_time: null,
          });
          call.audit?.resource("api_key", row.id, row.name);
          call.audit?.note("scopes", row.scopes.map(nameOfScope).join(","));
          return apiKeyMessage(row, environment, now.getTime());
        }),
      );
      if (replayed) context.responseHeader.set(replayedHeader, "true");
      else message.apiKey = key;
      return message;
    },

    async getApiKey(request, context) {
      const { row, org } = await findKey(callOf(context).orgId, request.id);
      return apiKeyMessage(row, org.environment, clock.now());
    },

    async listApiKeys(request, context) {
      const { orgId } = callOf(context);
      const pair = await readPair(deps, orgId);
      const page = await readPage(
        pager,
        {
          method: "octomesh.identity.v1.ApiKeyService/ListApiKeys",
          orgId,
          filter: [],
          pageSize: request.pageSize,
          pageToken: request.pageToken,
        },
        async (position) => {
          const lists = await Promise.all(
            pair.map((org) => database.read(org.org_id, (tx) => listApiKeys(tx, org.org_id, position))),
          );
          return lists.flat().sort(newestFirst).slice(0, position.limit);
        },
      );
      const environments = new Map(pair.map((org) => [org.org_id, org.environment]));
      const now = clock.now();
      return {
        apiKeys: page.rows.map((row) =>
          apiKeyMessage(row, environments.get(row.org_id) ?? Environment.UNSPECIFIED, now),
        ),
        nextPageToken: page.nextPageToken,
      };
    },

    async revokeApiKey(request, context) {
      const { org } = await findKey(callOf(context).orgId, request.id);
      const call = withOrganization(callOf(context), org.org_id);
      const now = new Date(clock.now());
      const { row, recorded } = await database.write(call, async (tx) => {
        const revoked = await revokeApiKey(tx, org.org_id, request.id, now);
        if (revoked === undefined)
          throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such API key", { id: request.id });
        call.audit?.resource("api_key", revoked.id, revoked.name);
        const readTokens = await readTokenRevocations(deps, tx, org.org_id, { creatorId: revoked.id });
        const key = await revocations.record(tx, ...readTokens, {
          subject: Subject.API_KEY,
          orgId: org.org_id,
          id: revoked.id,
          revokeTime: now,
          forgetTime: new Date(now.getTime() + opaqueCacheMs),
          digest: revoked.digest,
        });
        return { row: revoked, recorded: key };
      });
      await revocations.settle(recorded);
      return apiKeyMessage(row, org.environment, now.getTime());
    },
  };
}

function apiKeyMessage(row: ApiKeyRow, environment: Environment, now: number): ApiKey {
  return create(ApiKeySchema, {
    id: row.id,
    orgId: row.org_id,
    name: row.name,
    prefix: row.prefix,
    scopes: row.scopes,
    environment,
    state: stateOf(row, now),
    createTime: timestampFromDate(row.create_time),
    expireTime: row.expire_time === null ? undefined : timestampFromDate(row.expire_time),
    lastUseTime: row.last_use_time === null ? undefined : timestampFromDate(row.last_use_time),
    revokeTime: row.revoke_time === null ? undefined : timestampFromDate(row.revoke_time),
  });
}

function stateOf(row: ApiKeyRow, now: number): ApiKey_State {
  if (row.revoke_time !== null) return ApiKey_State.REVOKED;
  return row.expire_time !== null && row.expire_time.getTime() <= now ? ApiKey_State.EXPIRED : ApiKey_State.ACTIVE;
}

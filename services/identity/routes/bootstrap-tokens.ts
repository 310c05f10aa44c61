import { create } from "@bufbuild/protobuf";
import { durationMs, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { digestToken, mintToken } from "@octomesh/mesh/opaque-token";
import {
  type BootstrapToken,
  BootstrapToken_Kind,
  BootstrapToken_State,
  BootstrapTokenSchema,
} from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_pb";
import { BootstrapTokenService } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_service_pb";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { type BootstrapTokenState, bootstrapTokenState } from "../bootstrap-token.ts";
import type { Dependencies } from "../dependencies.ts";
import { enrolmentTokenMs, opaqueCacheMs, singleUseTokenMs } from "../lifetimes.ts";
import { readPage } from "../page.ts";
import { replayable, replayedHeader } from "../replayable.ts";
import {
  type BootstrapTokenRow,
  findBootstrapToken,
  insertBootstrapToken,
  listBootstrapTokens,
  revokeBootstrapToken,
} from "../store/bootstrap-tokens.ts";
import { readForIssue } from "../store/organizations.ts";

/** BootstrapTokenService. */
export function bootstrapTokenRoutes(deps: Dependencies): ServiceImpl<typeof BootstrapTokenService> {
  const { database, clock, pager, revocations } = deps;
  return {
    async createBootstrapToken(request, context) {
      const call = callOf(context);
      const kind = request.kind === BootstrapToken_Kind.UNSPECIFIED ? BootstrapToken_Kind.SINGLE_USE : request.kind;
      const isSingleUse = kind === BootstrapToken_Kind.SINGLE_USE;
      if (isSingleUse && request.maxUses > 1) {
        throw fail(Reason.VALIDATION_FAILED, "a single-use token is used once", { field: "max_uses" });
      }
      if (!isSingleUse && request.maxUses === 0) {
        throw fail(Reason.VALIDATION_FAILED, "an enrolment token needs max_uses", { field: "max_uses" });
      }
      const now = new Date(clock.now());
      const lifetimeMs =
        request.lifetime === undefined
          ? isSingleUse
            ? singleUseTokenMs
            : enrolmentTokenMs
          : durationMs(request.lifetime);
      const token = mintToken("edg_bootstrap_");
      const { message, replayed } = await database.write(call, (tx) =>
        replayable(tx, call, BootstrapTokenService.method.createBootstrapToken, request, async () => {
          await readForIssue(tx, call.orgId);
          const row = await insertBootstrapToken(tx, {
            org_id: call.orgId,
            id: newId("btk", now.getTime()),
            kind,
            name: request.name,
            digest: digestToken(token),
            max_uses: isSingleUse ? 1 : request.maxUses,
            allowed_identifiers: [...new Set(request.allowedIdentifiers)],
            approval_required: request.approvalRequired,
            group_ids: [...new Set(request.groupIds)],
            create_time: now,
            expire_time: new Date(now.getTime() + lifetimeMs),
            revoke_time: null,
          });
          call.audit?.resource("bootstrap_token", row.id, row.name);
          call.audit?.note("max_uses", String(row.max_uses));
          return bootstrapTokenMessage(row, now.getTime());
        }),
      );
      if (replayed) context.responseHeader.set(replayedHeader, "true");
      else message.token = token;
      return message;
    },

    async getBootstrapToken(request, context) {
      const { orgId } = callOf(context);
      const row = await database.read(orgId, (tx) => findBootstrapToken(tx, orgId, request.id));
      if (row === undefined) throw unknownToken(request.id);
      return bootstrapTokenMessage(row, clock.now());
    },

    async listBootstrapTokens(request, context) {
      const { orgId } = callOf(context);
      const page = await readPage(
        pager,
        {
          method: "octomesh.identity.v1.BootstrapTokenService/ListBootstrapTokens",
          orgId,
          filter: [],
          pageSize: request.pageSize,
          pageToken: request.pageToken,
        },
        (position) => database.read(orgId, (tx) => listBootstrapTokens(tx, orgId, position)),
      );
      const now = clock.now();
      return {
        bootstrapTokens: page.rows.map((row) => bootstrapTokenMessage(row, now)),
        nextPageToken: page.nextPageToken,
      };
    },

    async revokeBootstrapToken(request, context) {
      const call = callOf(context);
      const now = new Date(clock.now());
      const { row, recorded } = await database.write(call, async (tx) => {
        const revoked = await revokeBootstrapToken(tx, call.orgId, request.id, now);
        if (revoked === undefined) throw unknownToken(request.id);
        call.audit?.resource("bootstrap_token", revoked.id, revoked.name);
        const key = await revocations.record(tx, {
          subject: Subject.BOOTSTRAP_TOKEN,
          orgId: call.orgId,
          id: revoked.id,
          revokeTime: now,
          forgetTime: new Date(now.getTime() + opaqueCacheMs),
          digest: revoked.digest,
        });
        return { row: revoked, recorded: key };
      });
      await revocations.settle(recorded);
      return bootstrapTokenMessage(row, now.getTime());
    },
  };
}

const states: Record<BootstrapTokenState, BootstrapToken_State> = {
  active: BootstrapToken_State.ACTIVE,
  used: BootstrapToken_State.USED,
  expired: BootstrapToken_State.EXPIRED,
  revoked: BootstrapToken_State.REVOKED,
};

function bootstrapTokenMessage(row: BootstrapTokenRow, now: number): BootstrapToken {
  return create(BootstrapTokenSchema, {
    id: row.id,
    orgId: row.org_id,
    kind: row.kind,
    name: row.name,
    maxUses: row.max_uses,
    uses: row.uses,
    allowedIdentifiers: row.allowed_identifiers,
    approvalRequired: row.approval_required,
    groupIds: row.group_ids,
    state: states[bootstrapTokenState(row, now)],
    createTime: timestampFromDate(row.create_time),
    expireTime: timestampFromDate(row.expire_time),
    revokeTime: row.revoke_time === null ? undefined : timestampFromDate(row.revoke_time),
  });
}

function unknownToken(id: string): Error {
  return fail(Reason.RESOURCE_NOT_FOUND, "there is no such bootstrap token", { id });
}

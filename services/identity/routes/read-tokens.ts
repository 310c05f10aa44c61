import { create } from "@bufbuild/protobuf";
import { durationMs, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { Call } from "@octomesh/mesh/call";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { digestToken, mintToken } from "@octomesh/mesh/opaque-token";
import { nameOfScope } from "@octomesh/mesh/policy";
import { type ReadToken, ReadTokenSchema } from "@octomesh/proto/octomesh/identity/v1/read_token_pb";
import { ReadTokenService } from "@octomesh/proto/octomesh/identity/v1/read_token_service_pb";
import type { Dependencies } from "../dependencies.ts";
import { readTokenMs } from "../lifetimes.ts";
import { readTokenRevocations } from "../read-tokens.ts";
import { replayable, replayedHeader } from "../replayable.ts";
import type { IdentityTransaction } from "../schema.ts";
import { holdApiKey } from "../store/api-keys.ts";
import { findMember } from "../store/members.ts";
import { readForIssue } from "../store/organizations.ts";
import { findReadToken, insertReadToken, type ReadTokenRow } from "../store/read-tokens.ts";

/** ReadTokenService. */
export function readTokenRoutes(deps: Dependencies): ServiceImpl<typeof ReadTokenService> {
  const { database, clock, revocations } = deps;
  return {
    async createReadToken(request, context) {
      const call = callOf(context);
      const { caller } = call;
      for (const scope of request.scopes) {
        const name = nameOfScope(scope);
        if (!name.endsWith(":read")) {
          throw fail(Reason.VALIDATION_FAILED, `a read token cannot hold ${name}`, { field: "scopes", scope: name });
        }
        // An administrator reads everything; a key hands on only what it holds.
        if (caller.kind !== "session" && !caller.scopes.has(scope)) {
          throw fail(Reason.SCOPE_MISSING, `the scope ${name} is missing`, { scope: name });
        }
      }
      const now = new Date(clock.now());
      const lifetimeMs = request.lifetime === undefined ? readTokenMs : durationMs(request.lifetime);
      const token = mintToken("edg_read_");
      const { message, replayed } = await database.write(call, (tx) =>
        replayable(tx, call, ReadTokenService.method.createReadToken, request, async () => {
          await readForIssue(tx, call.orgId);
          await holdCreator(tx, call);
          const row = await insertReadToken(tx, {
            org_id: call.orgId,
            id: newId("rdt", now.getTime()),
            digest: digestToken(token),
            scopes: [...request.scopes].sort((a, b) => a - b),
            creator_id: caller.id,
            create_time: now,
            expire_time: new Date(now.getTime() + lifetimeMs),
            revoke_time: null,
          });
          call.audit?.resource("read_token", row.id);
          call.audit?.note("scopes", row.scopes.map(nameOfScope).join(","));
          return readTokenMessage(row);
        }),
      );
      if (replayed) context.responseHeader.set(replayedHeader, "true");
      else message.token = token;
      return message;
    },

    async revokeReadToken(request, context) {
      const call = callOf(context);
      call.audit?.resource("read_token", request.id);
      const recorded = await database.write(call, async (tx) => {
        if ((await findReadToken(tx, call.orgId, request.id)) === undefined) {
          throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such read token", { id: request.id });
        }
        return await revocations.record(tx, ...(await readTokenRevocations(deps, tx, call.orgId, { id: request.id })));
      });
      await revocations.settle(recorded);
      return {};
    },
  };
}

/**
 * Makes sure that whoever asks for the token may still, and cannot be revoked before it is written: revoking a maker
 * must find all that it made. Members are removed under the organisation's lock, which `readForIssue` waits for.
 */
async function holdCreator(tx: IdentityTransaction, { caller, orgId }: Call): Promise<void> {
  const isThere =
    caller.kind === "session"
      ? (await findMember(tx, orgId, { id: caller.id })) !== undefined
      : await holdApiKey(tx, orgId, caller.id);
  if (!isThere) throw fail(Reason.CREDENTIAL_REVOKED, "the credential was revoked");
}

function readTokenMessage(row: ReadTokenRow): ReadToken {
  return create(ReadTokenSchema, {
    id: row.id,
    orgId: row.org_id,
    scopes: row.scopes,
    createTime: timestampFromDate(row.create_time),
    expireTime: timestampFromDate(row.expire_time),
  });
}

import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf, withOrganization } from "@octomesh/mesh/call-context";
import { wireKindOf } from "@octomesh/mesh/caller";
import { fail, Reason } from "@octomesh/mesh/errors";
import { digestToken, parseToken } from "@octomesh/mesh/opaque-token";
import { type Session, SessionSchema } from "@octomesh/proto/octomesh/identity/v1/session_pb";
import type { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { Role } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import type { Dependencies } from "../dependencies.ts";
import { decideRefresh, isSameDigest } from "../refresh.ts";
import {
  beginSession,
  endSessions,
  renewSession,
  type SessionGrant,
  type SessionTokens,
  sessionTokens,
} from "../sessions.ts";
import { acceptInvitation, findInvitation, findMember } from "../store/members.ts";
import { readForIssue, readForRenewal } from "../store/organizations.ts";
import { findRefreshToken } from "../store/refresh-tokens.ts";
import { lockSession } from "../store/sessions.ts";
import { memberMessage } from "./members.ts";

/** SessionService. */
export function sessionRoutes(deps: Dependencies): ServiceImpl<typeof SessionService> {
  const { database, clock } = deps;
  return {
    async acceptInvitation(request, context) {
      if (parseToken(request.invitationCode)?.prefix !== "edg_invite_") {
        throw fail(Reason.CREDENTIAL_MALFORMED, "the invitation code is not well formed");
      }
      const digest = digestToken(request.invitationCode);
      const found = await database.system((tx) => findInvitation(tx, digest));
      if (found === undefined) throw unknownInvitation();
      const call = withOrganization(callOf(context), found.org_id);
      call.audit?.resource("member", found.id);
      const grant = await database.write(call, async (tx) => {
        const org = await readForIssue(tx, found.org_id);
        const now = clock.now();
        const member = await findMember(tx, found.org_id, { id: found.id });
        // Who has the code alone learns nothing of the address that it was sent to.
        if (
          member?.invitation_expire_time == null ||
          !isSameDigest(member.invitation_digest, digest) ||
          !isSameDigest(digestToken(member.email), digestToken(request.email.toLowerCase()))
        ) {
          throw unknownInvitation();
        }
        if (member.invitation_expire_time.getTime() <= now) {
          throw fail(Reason.CREDENTIAL_EXPIRED, "the invitation has lapsed");
        }
        const accepted = await acceptInvitation(tx, org.org_id, member.id, digest, new Date(now));
        if (accepted === undefined) throw unknownInvitation();
        return await beginSession(deps, tx, org, accepted);
      });
      return sessionMessage(grant, await sessionTokens(deps, grant));
    },

    async refreshSession(request, context) {
      if (parseToken(request.refreshToken)?.prefix !== "edg_session_") {
        throw fail(Reason.CREDENTIAL_MALFORMED, "the refresh token is not well formed");
      }
      const digest = digestToken(request.refreshToken);
      const presented = await database.system((tx) => findRefreshToken(tx, digest));
      if (presented === undefined) throw fail(Reason.CREDENTIAL_UNKNOWN, "the refresh token is unknown");
      const call = withOrganization(callOf(context), presented.org_id);
      call.audit?.resource("session", presented.family_id);
      const result = await database.write(call, async (tx) => {
        const org = await readForRenewal(tx, presented.org_id);
        const session = await lockSession(tx, presented.org_id, presented.family_id);
        if (org === undefined || session === undefined) {
          throw fail(Reason.CREDENTIAL_UNKNOWN, "the refresh token is unknown");
        }
        const decision = decideRefresh(
          {
            generation: session.generation,
            rotateTime: session.rotate_time.getTime(),
            expireTime: session.expire_time.getTime(),
            revokeTime: session.revoke_time?.getTime(),
          },
          { generation: presented.generation },
          clock.now(),
        );
        if (decision.kind === "refuse") throw refusalOf(decision.cause);
        if (decision.kind === "revoke") {
          call.audit?.note("session_revoked", decision.cause);
          const revocations = await endSessions(deps, tx, [session], decision.cause);
          return { recorded: await deps.revocations.record(tx, ...revocations) };
        }
        const member = await findMember(tx, org.org_id, { id: session.member_id });
        // While an organisation is being deleted, its owners alone go on, to see the deletion through.
        if (member === undefined || (org.delete_time !== null && member.role !== Role.OWNER)) {
          throw refusalOf("revoked");
        }
        return { grant: await renewSession(deps, tx, org, member, session, decision.generation) };
      });
      if (result.grant === undefined) {
        await deps.revocations.settle(result.recorded);
        throw fail(Reason.CREDENTIAL_REVOKED, "the refresh token was used before: the session is revoked");
      }
      return sessionMessage(result.grant, await sessionTokens(deps, result.grant));
    },

    async endSession(_request, context) {
      const call = callOf(context);
      const id = call.caller.credentialId;
      call.audit?.resource("session", id);
      const recorded = await database.write(call, async (tx) => {
        const session = await lockSession(tx, call.orgId, id);
        if (session === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such session", { id });
        return await deps.revocations.record(tx, ...(await endSessions(deps, tx, [session], "ended")));
      });
      await deps.revocations.settle(recorded);
      return {};
    },

    async getCaller(_request, context) {
      const { caller, orgId } = callOf(context);
      const member =
        caller.kind === "session"
          ? await database.read(orgId, (tx) => findMember(tx, orgId, { id: caller.id }))
          : undefined;
      return {
        kind: wireKindOf(caller.kind),
        orgId,
        id: caller.id,
        scopes: [...caller.scopes].sort((a, b) => a - b),
        role: caller.role,
        member: member === undefined ? undefined : memberMessage(member),
      };
    },
  };
}

/** A session as the contract shows it, with its tokens. */
export function sessionMessage(grant: SessionGrant, tokens: SessionTokens): Session {
  return create(SessionSchema, {
    id: grant.id,
    orgId: grant.orgId,
    memberId: grant.memberId,
    accessToken: tokens.accessToken,
    expireTime: timestampFromMs(tokens.expireTime),
    refreshToken: tokens.refreshToken,
  });
}

function unknownInvitation(): Error {
  return fail(Reason.CREDENTIAL_UNKNOWN, "the invitation is unknown, was used, or is not for this address");
}

function refusalOf(cause: "expired" | "revoked"): Error {
  return cause === "expired"
    ? fail(Reason.CREDENTIAL_EXPIRED, "the refresh token has expired")
    : fail(Reason.CREDENTIAL_REVOKED, "the session was revoked");
}

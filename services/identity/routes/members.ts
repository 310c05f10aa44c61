import { create } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { digestToken, mintToken } from "@octomesh/mesh/opaque-token";
import { type Member, Member_State, MemberSchema } from "@octomesh/proto/octomesh/identity/v1/member_pb";
import { MemberService } from "@octomesh/proto/octomesh/identity/v1/member_service_pb";
import { Role, RoleSchema } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import type { Dependencies } from "../dependencies.ts";
import { invitationMs } from "../lifetimes.ts";
import { readPage } from "../page.ts";
import { readTokenRevocations } from "../read-tokens.ts";
import { replayable, replayedHeader } from "../replayable.ts";
import type { IdentityTransaction } from "../schema.ts";
import { endSessions, memberRevocation } from "../sessions.ts";
import {
  countActive,
  deleteMember,
  findMember,
  insertMember,
  listMembers,
  type MemberRow,
  updateMember,
} from "../store/members.ts";
import { lockOrganization, readForIssue } from "../store/organizations.ts";
import { lockSessionsOf } from "../store/sessions.ts";

/** MemberService. */
export function memberRoutes(deps: Dependencies): ServiceImpl<typeof MemberService> {
  const { database, clock, pager, revocations } = deps;
  return {
    async addMember(request, context) {
      const call = callOf(context);
      const { orgId } = call;
      const now = new Date(clock.now());
      const code = mintToken("edg_invite_");
      const invitation = {
        role: request.role === Role.UNSPECIFIED ? Role.MEMBER : request.role,
        update_time: now,
        invitation_digest: digestToken(code),
        invitation_expire_time: new Date(now.getTime() + invitationMs),
      };
      const { message, replayed } = await database.write(call, (tx) =>
        replayable(tx, call, MemberService.method.addMember, request, async () => {
          await readForIssue(tx, orgId);
          const email = request.email.toLowerCase();
          const fresh = {
            ...invitation,
            org_id: orgId,
            id: newId("usr", now.getTime()),
            email,
            state: Member_State.INVITED,
            create_time: now,
          };
          const isNew = await insertMember(tx, fresh);
          const member = await findMember(tx, orgId, { email });
          if (member === undefined) throw new Error("a member that was just written cannot be missing");
          call.audit?.resource("member", member.id);
          call.audit?.note("role", roleName(invitation.role));
          if (isNew) return memberMessage(member);
          // Who was invited and has not come is invited again; the code before is good no more.
          if (member.state !== Member_State.INVITED) {
            throw fail(Reason.RESOURCE_EXISTS, "a member has this address already", { id: member.id });
          }
          return memberMessage(await updateMember(tx, orgId, member.id, invitation));
        }),
      );
      if (replayed) context.responseHeader.set(replayedHeader, "true");
      else message.invitationCode = code;
      return message;
    },

    async getMember(request, context) {
      const { orgId } = callOf(context);
      return memberMessage(await database.read(orgId, (tx) => readMember(tx, orgId, request.id)));
    },

    async listMembers(request, context) {
      const { orgId } = callOf(context);
      const page = await readPage(
        pager,
        {
          method: "octomesh.identity.v1.MemberService/ListMembers",
          orgId,
          filter: [],
          pageSize: request.pageSize,
          pageToken: request.pageToken,
        },
        (position) => database.read(orgId, (tx) => listMembers(tx, orgId, position)),
      );
      return { members: page.rows.map(memberMessage), nextPageToken: page.nextPageToken };
    },

    async updateMember(request, context) {
      const call = callOf(context);
      const { orgId } = call;
      const { member, recorded } = await database.write(call, async (tx) => {
        // The organisation's lock puts changes of owners one after the other, and keeps sessions from being renewed.
        await lockOrganization(tx, orgId);
        const before = await readMember(tx, orgId, request.id);
        call.audit?.resource("member", before.id);
        call.audit?.note("role_before", roleName(before.role));
        call.audit?.note("role", roleName(request.role));
        if (before.role === request.role) return { member: before, recorded: undefined };
        await keepAnOwner(tx, before);
        const update_time = new Date(clock.now());
        const after = await updateMember(tx, orgId, before.id, { role: request.role, update_time });
        const sessions = await lockSessionsOf(tx, orgId, before.id);
        return { member: after, recorded: await revocations.record(tx, memberRevocation(deps, after, sessions)) };
      });
      await revocations.settle(recorded);
      return memberMessage(member);
    },

    async removeMember(request, context) {
      const call = callOf(context);
      const { orgId } = call;
      const recorded = await database.write(call, async (tx) => {
        await lockOrganization(tx, orgId);
        const member = await readMember(tx, orgId, request.id);
        call.audit?.resource("member", member.id);
        await keepAnOwner(tx, member);
        const sessions = await lockSessionsOf(tx, orgId, member.id);
        const ended = await endSessions(deps, tx, sessions, "member_removed");
        const readTokens = await readTokenRevocations(deps, tx, orgId, { creatorId: member.id });
        await deleteMember(tx, orgId, member.id);
        return await revocations.record(tx, ...ended, ...readTokens, memberRevocation(deps, member, sessions));
      });
      await revocations.settle(recorded);
      return {};
    },
  };
}

/** A member as the contract shows it. */
export function memberMessage(row: MemberRow): Member {
  return create(MemberSchema, {
    id: row.id,
    orgId: row.org_id,
    email: row.email,
    role: row.role,
    state: row.state,
    createTime: timestampFromDate(row.create_time),
    updateTime: timestampFromDate(row.update_time),
    invitationExpireTime:
      row.invitation_expire_time === null ? undefined : timestampFromDate(row.invitation_expire_time),
  });
}

async function readMember(tx: IdentityTransaction, orgId: string, key: string): Promise<MemberRow> {
  const row = await findMember(tx, orgId, key.includes("@") ? { email: key.toLowerCase() } : { id: key });
  if (row === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such member");
  return row;
}

/** Refuses to take the role from the last owner who can sign in. Called under the organisation's lock. */
async function keepAnOwner(tx: IdentityTransaction, member: MemberRow): Promise<void> {
  if (member.role !== Role.OWNER || member.state !== Member_State.ACTIVE) return;
  if ((await countActive(tx, member.org_id, Role.OWNER)) <= 1) {
    throw fail(Reason.LAST_OWNER, "an organisation keeps at least one owner", { id: member.id });
  }
}

function roleName(role: Role): string {
  return RoleSchema.value[role]?.name.replace("ROLE_", "").toLowerCase() ?? "";
}

import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { mintToken } from "@octomesh/mesh/opaque-token";
import { Member_State } from "@octomesh/proto/octomesh/identity/v1/member_pb";
import { MemberService } from "@octomesh/proto/octomesh/identity/v1/member_service_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import type { Session } from "@octomesh/proto/octomesh/identity/v1/session_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { Role } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { sql } from "kysely";
import { beforeEach, describe, expect, it } from "vitest";
import { invitationMs, sessionRefreshMs } from "./lifetimes.ts";
import { refreshGraceMs } from "./refresh.ts";
import { refusalOf, startTestIdentity } from "./test/identity-fixture.ts";

const identity = await startTestIdentity();
const acme = await identity.setUp();
const other = await identity.addOrganization("Other");
let members = identity.client(MemberService, { bearer: acme.session.accessToken });
const sessions = identity.client(SessionService, "public");

beforeEach(() => {
  identity.time.offsetMs = 0;
});

let addresses = 0;

async function join(role: Role): Promise<{ id: string; email: string; session: Session }> {
  addresses += 1;
  const email = `person${addresses}@example.com`;
  const member = await members.addMember({ email, role });
  const session = await sessions.acceptInvitation({ invitationCode: member.invitationCode, email });
  return { id: member.id, email, session };
}

function callerOf(session: Session) {
  return identity.client(SessionService, { bearer: session.accessToken }).getCaller({});
}

describe("AddMember and AcceptInvitation", () => {
  it("invites by a code that is shown once, bound to the address, used once", async () => {
    const email = "New.Person@Example.com";
    const member = await members.addMember({ email, role: Role.ADMIN });
    expect(member).toMatchObject({ email: "new.person@example.com", role: Role.ADMIN, state: Member_State.INVITED });
    const invitationCode = member.invitationCode;
    expect(invitationCode).toMatch(/^edg_invite_/);
    expect((await members.getMember({ id: member.id })).invitationCode).toBe("");
    const accept = (address: string) => sessions.acceptInvitation({ invitationCode, email: address });
    expect(await refusalOf(accept("else@example.com"))).toBe(Reason.CREDENTIAL_UNKNOWN);
    const attempts = await Promise.allSettled(Array.from({ length: 8 }, () => accept(email.toUpperCase())));
    const accepted = attempts.flatMap((attempt) => (attempt.status === "fulfilled" ? [attempt.value] : []));
    expect(accepted.length).toBe(1);
    expect(accepted[0]).toMatchObject({ memberId: member.id, orgId: acme.orgId });
    for (const attempt of attempts) {
      if (attempt.status === "rejected") expect(reasonOf(attempt.reason)).toBe(Reason.CREDENTIAL_UNKNOWN);
    }
    expect((await members.getMember({ id: email })).state).toBe(Member_State.ACTIVE);
  });

  it("refuses a lapsed code, another's and what is none", async () => {
    const email = "late@example.com";
    const { invitationCode } = await members.addMember({ email });
    identity.time.offsetMs = invitationMs + 1_000;
    expect(await refusalOf(sessions.acceptInvitation({ invitationCode, email }))).toBe(Reason.CREDENTIAL_EXPIRED);
    const refused = (code: string) => refusalOf(sessions.acceptInvitation({ invitationCode: code, email }));
    expect(await refused(mintToken("edg_invite_"))).toBe(Reason.CREDENTIAL_UNKNOWN);
    expect(await refused("edg_invite_x")).toBe(Reason.CREDENTIAL_MALFORMED);
  });

  it("invites again who has not come, and refuses a second membership of one address", async () => {
    const email = "twice@example.com";
    const first = await members.addMember({ email });
    const second = await members.addMember({ email, role: Role.ADMIN });
    expect(second).toMatchObject({ id: first.id, role: Role.ADMIN });
    const accept = (invitationCode: string) => sessions.acceptInvitation({ invitationCode, email });
    expect(await refusalOf(accept(first.invitationCode))).toBe(Reason.CREDENTIAL_UNKNOWN);
    await accept(second.invitationCode);
    expect(await refusalOf(members.addMember({ email }))).toBe(Reason.RESOURCE_EXISTS);
  });

  it("answers a repeated request without the code, and refuses the id for another request", async () => {
    const request = { email: "again@example.com", requestId: "request-1" };
    const first = await members.addMember(request);
    let replayed: string | null = null;
    const again = await members.addMember(request, {
      onHeader: (header) => {
        replayed = header.get("octomesh-replayed");
      },
    });
    expect(again).toMatchObject({ id: first.id, invitationCode: "" });
    expect(replayed).toBe("true");
    expect(await refusalOf(members.addMember({ ...request, role: Role.ADMIN }))).toBe(Reason.REQUEST_ID_REUSED);
  });
});

describe("UpdateMember", () => {
  it("takes effect at once: the old token is refused, the refreshed one has the new role", async () => {
    const { id, session } = await join(Role.ADMIN);
    expect((await callerOf(session)).role).toBe(Role.ADMIN);
    await members.updateMember({ id, role: Role.MEMBER });
    expect(await refusalOf(callerOf(session))).toBe(Reason.CREDENTIAL_REVOKED);
    const renewed = await sessions.refreshSession({ refreshToken: session.refreshToken });
    expect((await callerOf(renewed)).role).toBe(Role.MEMBER);
    const asMember = identity.client(MemberService, { bearer: renewed.accessToken });
    expect(await refusalOf(asMember.listMembers({}))).toBe(Reason.ROLE_MISSING);
  });

  it("keeps the last owner, however many owners step down at once", async () => {
    const owners = [acme.ownerId, (await join(Role.OWNER)).id, (await join(Role.OWNER)).id];
    const results = await Promise.allSettled(owners.map((id) => members.updateMember({ id, role: Role.ADMIN })));
    const refused = results.flatMap((result) => (result.status === "rejected" ? [reasonOf(result.reason)] : []));
    expect(refused).toEqual([Reason.LAST_OWNER]);
    const rows = await identity.database.read(acme.orgId, (tx) =>
      tx.selectFrom("members").select("id").where("role", "=", Role.OWNER).where("state", "=", 2).execute(),
    );
    expect(rows.length).toBe(1);
    // The tests that follow need the first owner, and nobody else, in that role.
    for (const [role, ids] of [
      [Role.ADMIN, owners.slice(1)],
      [Role.OWNER, [acme.ownerId]],
    ] as const) {
      await identity.database.ingest([acme.orgId], (tx) =>
        tx.updateTable("members").set({ role }).where("id", "in", ids).execute(),
      );
    }
    const { accessToken } = await sessions.refreshSession({ refreshToken: acme.session.refreshToken });
    members = identity.client(MemberService, { bearer: accessToken });
  });

  it("does not count an owner who has not come", async () => {
    await members.addMember({ email: "not-here@example.com", role: Role.OWNER });
    const refusal = await refusalOf(members.updateMember({ id: acme.ownerId, role: Role.ADMIN }));
    expect(refusal).toBe(Reason.LAST_OWNER);
    expect(await refusalOf(members.removeMember({ id: acme.ownerId }))).toBe(Reason.LAST_OWNER);
  });
});

describe("RemoveMember", () => {
  it("ends the member's sessions and forgets the address", async () => {
    const { id, email, session } = await join(Role.MEMBER);
    await callerOf(session);
    await members.removeMember({ id: email });
    expect(await refusalOf(callerOf(session))).toBe(Reason.CREDENTIAL_REVOKED);
    expect(await refusalOf(sessions.refreshSession({ refreshToken: session.refreshToken }))).toBe(
      Reason.CREDENTIAL_REVOKED,
    );
    expect(await refusalOf(members.getMember({ id }))).toBe(Reason.RESOURCE_NOT_FOUND);
    expect(await refusalOf(members.removeMember({ id }))).toBe(Reason.RESOURCE_NOT_FOUND);
    const rows = await identity.database.system((tx) =>
      tx.selectFrom("members").select("id").where("email", "=", email).execute(),
    );
    expect(rows).toEqual([]);
  });

  it("forgets the address in answers that are kept for repetitions, and repeats no invitation", async () => {
    const wish = { email: "once.invited@example.com", role: Role.MEMBER, requestId: "invite-1" };
    const { id } = await members.addMember(wish);
    await members.removeMember({ id });
    const { rows } = await identity.database.ingest([acme.orgId], (tx) =>
      sql`select request_id from idempotency where position(convert_to(${wish.email}, 'UTF8') in answer) > 0`.execute(
        tx,
      ),
    );
    expect(rows).toEqual([]);
    expect(await members.addMember(wish)).toMatchObject({ id: "", email: "", invitationCode: "" });
    expect(await refusalOf(members.getMember({ id: wish.email }))).toBe(Reason.RESOURCE_NOT_FOUND);
  });
});

describe("ListMembers", () => {
  it("pages through all, oldest first, with tokens that nobody else can use", async () => {
    const all = (await members.listMembers({ pageSize: 1000 })).members.map((member) => member.id);
    const paged: string[] = [];
    let pageToken = "";
    do {
      const page = await members.listMembers({ pageSize: 2, pageToken });
      expect(page.members.length).toBeLessThanOrEqual(2);
      paged.push(...page.members.map((member) => member.id));
      pageToken = page.nextPageToken;
      if (pageToken !== "") {
        const foreign = identity.client(MemberService, { bearer: other.session.accessToken });
        expect(await refusalOf(foreign.listMembers({ pageSize: 2, pageToken }))).toBe(Reason.PAGE_TOKEN_INVALID);
      }
    } while (pageToken !== "");
    expect(paged).toEqual(all);
    expect(all[0]).toBe(acme.ownerId);
  });
});

describe("another organisation", () => {
  it("does not see, change or remove a member by id or address", async () => {
    const { id, email } = await join(Role.MEMBER);
    const foreign = identity.client(MemberService, { bearer: other.session.accessToken });
    for (const key of [id, email]) {
      expect(await refusalOf(foreign.getMember({ id: key }))).toBe(Reason.RESOURCE_NOT_FOUND);
      expect(await refusalOf(foreign.updateMember({ id: key, role: Role.OWNER }))).toBe(Reason.RESOURCE_NOT_FOUND);
      expect(await refusalOf(foreign.removeMember({ id: key }))).toBe(Reason.RESOURCE_NOT_FOUND);
    }
    expect((await members.getMember({ id })).role).toBe(Role.MEMBER);
    const organizations = identity.client(OrganizationService, { bearer: other.session.accessToken });
    expect(await refusalOf(organizations.getOrganization({ id: acme.orgId }))).toBe(Reason.ORGANIZATION_MISMATCH);
  });
});

describe("RefreshSession", () => {
  it("rotates, gives concurrent calls one successor, and revokes the session on reuse", async () => {
    const { session } = await join(Role.MEMBER);
    const { refreshToken } = session;
    const answers = await Promise.all(Array.from({ length: 10 }, () => sessions.refreshSession({ refreshToken })));
    expect(new Set(answers.map((answer) => answer.refreshToken)).size).toBe(1);
    identity.time.offsetMs = refreshGraceMs + 5_000;
    expect(await refusalOf(sessions.refreshSession({ refreshToken }))).toBe(Reason.CREDENTIAL_REVOKED);
    const successor = answers[0]?.refreshToken ?? "";
    expect(await refusalOf(sessions.refreshSession({ refreshToken: successor }))).toBe(Reason.CREDENTIAL_REVOKED);
    for (const answer of answers) expect(await refusalOf(callerOf(answer))).toBe(Reason.CREDENTIAL_REVOKED);
  });

  it("refuses a session that was not used for 30 days", async () => {
    const { session } = await join(Role.MEMBER);
    identity.time.offsetMs = sessionRefreshMs + 1_000;
    const { refreshToken } = session;
    expect(await refusalOf(sessions.refreshSession({ refreshToken }))).toBe(Reason.CREDENTIAL_EXPIRED);
  });
});

describe("EndSession", () => {
  it("ends the session", async () => {
    const { id, session } = await join(Role.MEMBER);
    expect((await callerOf(session)).id).toBe(id);
    await identity.client(SessionService, { bearer: session.accessToken }).endSession({});
    expect(await refusalOf(callerOf(session))).toBe(Reason.CREDENTIAL_REVOKED);
    expect(await refusalOf(sessions.refreshSession({ refreshToken: session.refreshToken }))).toBe(
      Reason.CREDENTIAL_REVOKED,
    );
  });
});

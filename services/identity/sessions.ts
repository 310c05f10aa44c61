import { newId } from "@octomesh/mesh/ids";
import { deriveToken, digestToken } from "@octomesh/mesh/opaque-token";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import type { Role } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { signAccessToken } from "./access-token.ts";
import type { Dependencies } from "./dependencies.ts";
import { issueTimeAfter, revokeTimeFor } from "./issue-time.ts";
import { revocationSlackMs, sessionAccessMs, sessionRefreshMs } from "./lifetimes.ts";
import { rememberedGenerations } from "./refresh.ts";
import type { NewRevocation } from "./revocation-log.ts";
import type { IdentityTransaction } from "./schema.ts";
import type { MemberRow } from "./store/members.ts";
import type { OrganizationRow } from "./store/organizations.ts";
import { insertRefreshToken } from "./store/refresh-tokens.ts";
import { latestRevocation } from "./store/revocations.ts";
import { insertSession, revokeSessions, type SessionRow, updateSession } from "./store/sessions.ts";

/** What a session's tokens are made of, once its transaction has committed. Times in milliseconds. */
export interface SessionGrant {
  readonly id: string;
  readonly orgId: string;
  readonly memberId: string;
  readonly role: Role;
  readonly plan: number;
  readonly generation: number;
  readonly issueTime: number;
}

/** A session's tokens. Times in milliseconds since the Unix epoch. */
export interface SessionTokens {
  readonly accessToken: string;
  readonly expireTime: number;
  readonly refreshToken: string;
}

/** Begins a session of a member. */
export async function beginSession(
  deps: Dependencies,
  tx: IdentityTransaction,
  org: OrganizationRow,
  member: Pick<MemberRow, "id" | "role">,
): Promise<SessionGrant> {
  const now = deps.clock.now();
  const id = newId("ses", now);
  const issueTime = issueTimeAfter(now, await latestRevocation(tx, org.org_id, subjectsOf(id, member.id, org.org_id)));
  await insertSession(tx, {
    org_id: org.org_id,
    id,
    member_id: member.id,
    generation: 1,
    rotate_time: new Date(now),
    expire_time: new Date(now + sessionRefreshMs),
    issue_time: new Date(issueTime),
    create_time: new Date(now),
    revoke_time: null,
  });
  const grant = {
    id,
    orgId: org.org_id,
    memberId: member.id,
    role: member.role,
    plan: org.plan,
    generation: 1,
    issueTime,
  };
  await rememberToken(deps, tx, grant);
  return grant;
}

/** Renews a session: as the next generation, or, for an answer that was lost, with the newest one again. */
export async function renewSession(
  deps: Dependencies,
  tx: IdentityTransaction,
  org: OrganizationRow,
  member: Pick<MemberRow, "id" | "role">,
  session: SessionRow,
  generation: number,
): Promise<SessionGrant> {
  const now = deps.clock.now();
  const { id } = session;
  const issueTime = issueTimeAfter(now, await latestRevocation(tx, org.org_id, subjectsOf(id, member.id, org.org_id)));
  const isNew = generation > session.generation;
  await updateSession(tx, org.org_id, id, {
    ...(isNew ? { generation, rotate_time: new Date(now), expire_time: new Date(now + sessionRefreshMs) } : {}),
    issue_time: new Date(Math.max(issueTime, session.issue_time.getTime())),
  });
  const grant = {
    id,
    orgId: org.org_id,
    memberId: member.id,
    role: member.role,
    plan: org.plan,
    generation,
    issueTime,
  };
  if (isNew) await rememberToken(deps, tx, grant);
  return grant;
}

/** Makes the tokens of a grant. The same generation has the same refresh token every time (DESIGN 8.15). */
export async function sessionTokens(deps: Dependencies, grant: SessionGrant): Promise<SessionTokens> {
  const expireTime = Math.floor((grant.issueTime + sessionAccessMs) / 1000) * 1000;
  const accessToken = await signAccessToken(deps.keyRing.signingKey(), {
    issuer: deps.issuer,
    kind: "session",
    subject: grant.memberId,
    orgId: grant.orgId,
    credentialId: grant.id,
    role: grant.role,
    plan: grant.plan,
    issueTime: grant.issueTime,
    expireTime,
  });
  return { accessToken, expireTime, refreshToken: refreshToken(deps, grant.id, grant.generation) };
}

/** Ends sessions, and tells what to record so that their access tokens end too. */
export async function endSessions(
  deps: Dependencies,
  tx: IdentityTransaction,
  sessions: readonly SessionRow[],
  cause: string,
): Promise<NewRevocation[]> {
  const [first] = sessions;
  if (first === undefined) return [];
  const now = deps.clock.now();
  const ids = sessions.map((session) => session.id);
  await revokeSessions(tx, first.org_id, ids, { time: new Date(now), cause });
  return sessions.map((session) => {
    const revokeTime = revokeTimeFor(now, [session.issue_time]);
    return {
      subject: Subject.SESSION,
      orgId: session.org_id,
      id: session.id,
      revokeTime,
      forgetTime: new Date(revokeTime.getTime() + sessionAccessMs + revocationSlackMs),
    };
  });
}

/** What to record so that a member's access tokens end, and the next refresh brings those of the new role. */
export function memberRevocation(
  deps: Dependencies,
  member: Pick<MemberRow, "org_id" | "id">,
  sessions: readonly SessionRow[],
): NewRevocation {
  const issued = sessions.map((session) => session.issue_time);
  const revokeTime = revokeTimeFor(deps.clock.now(), issued);
  return {
    subject: Subject.MEMBER,
    orgId: member.org_id,
    id: member.id,
    revokeTime,
    forgetTime: new Date(revokeTime.getTime() + sessionAccessMs + revocationSlackMs),
  };
}

async function rememberToken(deps: Dependencies, tx: IdentityTransaction, grant: SessionGrant): Promise<void> {
  const digest = digestToken(refreshToken(deps, grant.id, grant.generation));
  const { orgId, id, generation } = grant;
  await insertRefreshToken(tx, { org_id: orgId, digest, family_id: id, generation }, rememberedGenerations);
}

function refreshToken(deps: Dependencies, sessionId: string, generation: number): string {
  return deriveToken("edg_session_", deps.refreshKey, `${sessionId}/${generation}`);
}

function subjectsOf(sessionId: string, memberId: string, orgId: string): { subject: Subject; id: string }[] {
  return [
    { subject: Subject.SESSION, id: sessionId },
    { subject: Subject.MEMBER, id: memberId },
    { subject: Subject.ORGANIZATION, id: orgId },
  ];
}

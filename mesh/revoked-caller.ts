import type { Caller } from "./caller.ts";
import { type Revocations, Subject } from "./revocations.ts";

type Revocable = Pick<Caller, "kind" | "orgId" | "id" | "credentialId" | "issuedMs">;

/** What can be revoked so that it concerns a caller: its credential, itself, its organisation. */
export function subjectsOf(caller: Revocable): readonly (readonly [Subject, string])[] {
  const subjects: [Subject, string][] = [];
  if (caller.orgId !== "") subjects.push([Subject.ORGANIZATION, caller.orgId]);
  switch (caller.kind) {
    case "device":
      subjects.push([Subject.DEVICE, caller.id]);
      break;
    case "session":
      subjects.push([Subject.SESSION, caller.credentialId], [Subject.MEMBER, caller.id]);
      break;
    case "api_key":
      subjects.push([Subject.API_KEY, caller.id]);
      break;
    case "bootstrap":
      subjects.push([Subject.BOOTSTRAP_TOKEN, caller.id]);
      break;
    case "read_token":
      subjects.push([Subject.READ_TOKEN, caller.id]);
      break;
    case "partner":
      subjects.push([Subject.PARTNER_KEY, caller.id]);
      break;
    case "edge":
      // An edge whose licence demands no certificate may have shown none.
      if (caller.credentialId !== "") subjects.push([Subject.EDGE_CERTIFICATE, caller.credentialId]);
      subjects.push([Subject.LICENSE_KEY, caller.id]);
      break;
    default:
  }
  return subjects;
}

/** Whether a revocation concerns a caller. Credentials without an issue time (0) are concerned by any. */
export function isRevokedCaller(caller: Revocable, revocations: Pick<Revocations, "isRevoked">): boolean {
  return subjectsOf(caller).some(([subject, id]) => revocations.isRevoked(subject, id, caller.issuedMs));
}

import { Role } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import type { Logger } from "pino";
import { type Call, createAuditDraft } from "./call.ts";
import type { ServiceName } from "./service-name.ts";

/**
 * A call of a service's own background work, for one organisation ("" for none). With an action it is audited as the
 * service; without, it is book-keeping that acts for nobody.
 */
export function createSystemCall(service: ServiceName, orgId: string, action: string | undefined, log: Logger): Call {
  const { signal } = new AbortController();
  return {
    caller: {
      kind: "system",
      orgId,
      id: service,
      credentialId: service,
      scopes: new Set(),
      role: Role.UNSPECIFIED,
      plan: 0,
      issuedMs: 0,
      sandbox: false,
      address: "",
    },
    orgId,
    requestId: "",
    audit: action === undefined ? undefined : createAuditDraft({ action }),
    auditExempt: action === undefined,
    signal,
    waitSignal: () => signal,
    log,
  };
}

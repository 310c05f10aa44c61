import { isIP } from "node:net";
import type { Call } from "./call.ts";
import type { CallerKind } from "./caller.ts";
import { isId } from "./ids.ts";

/** Header by which a service of the mesh says for whom it acts. Believed over mutual TLS only, on methods that admit DELEGATED. */
export const delegateHeader = "octomesh-delegate";

/** For whom a service acts. */
export interface Delegation {
  readonly orgId: string;
  readonly kind: CallerKind;
  readonly id: string;
  readonly plan: number;
  readonly address: string;
}

const kinds: ReadonlySet<string> = new Set<CallerKind>([
  "session",
  "api_key",
  "device",
  "bootstrap",
  "edge",
  "partner",
  "read_token",
  "system",
]);

/**
 * Writes the header's value: base64url of JSON, under 1 KiB. A call that is itself on someone's behalf is passed on as
 * that someone's. Throws where there is nobody to act for: a call in no organisation, or of a peer or the public.
 */
export function formatDelegation(call: Call): string {
  const { caller, orgId } = call;
  const { kind, id } = caller.kind === "delegated" && caller.delegate !== undefined ? caller.delegate : caller;
  if (!kinds.has(kind) || !isId("org", orgId)) throw new Error(`a call of kind ${kind} cannot be delegated`);
  const fields = [orgId, kind, id, caller.plan, caller.address];
  return Buffer.from(JSON.stringify(fields)).toString("base64url");
}

/** Reads the header's value; undefined unless it is well formed. */
export function parseDelegation(value: string): Delegation | undefined {
  if (value.length > 1024) return undefined;
  let fields: unknown;
  try {
    fields = JSON.parse(Buffer.from(value, "base64url").toString("utf8"));
  } catch {
    return undefined;
  }
  if (!Array.isArray(fields) || fields.length !== 5) return undefined;
  const [orgId, kind, id, plan, address] = fields;
  if (typeof orgId !== "string" || !isId("org", orgId)) return undefined;
  if (typeof kind !== "string" || !kinds.has(kind)) return undefined;
  if (typeof id !== "string" || !/^[\w-]{1,64}$/.test(id)) return undefined;
  if (typeof plan !== "number" || !Number.isInteger(plan) || plan < 0) return undefined;
  if (typeof address !== "string" || (address !== "" && isIP(address) === 0)) return undefined;
  return { orgId, kind: kind as CallerKind, id, plan, address };
}

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

/** Writes the header's value: base64url of JSON, under 1 KiB. */
export function formatDelegation(call: Call): string {
  const { caller, orgId } = call;
  const fields = [orgId, caller.kind, caller.id, caller.plan, caller.address];
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
  if (typeof id !== "string" || id.length === 0 || id.length > 64) return undefined;
  if (typeof plan !== "number" || !Number.isInteger(plan)) return undefined;
  if (typeof address !== "string" || address.length > 64) return undefined;
  return { orgId, kind: kind as CallerKind, id, plan, address };
}

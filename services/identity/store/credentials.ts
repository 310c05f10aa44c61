import { sql } from "kysely";
import type { IdentityTransaction } from "../schema.ts";

/** Whose an opaque credential is. */
export interface ResolvedCredential {
  readonly kind: "api_key" | "bootstrap" | "read_token" | "partner";
  readonly org_id: string;
  readonly id: string;
  readonly scopes: readonly number[];
  readonly plan: number;
  readonly environment: number;
  readonly expire_time: Date | null;
  readonly revoked: boolean;
  readonly used_up: boolean;
}

/** Finds an opaque credential by its digest, whichever table holds it; role system. */
export async function findCredential(tx: IdentityTransaction, digest: Buffer): Promise<ResolvedCredential | undefined> {
  const { rows } = await sql<ResolvedCredential>`
    select c.kind, c.org_id, c.id, c.scopes, o.plan, o.environment, c.expire_time,
      c.revoke_time is not null or o.delete_time is not null as revoked, c.used_up
    from (
      select 'api_key' as kind, org_id, id, scopes, expire_time, revoke_time, false as used_up
      from api_keys where digest = ${digest}
      union all
      select 'read_token', org_id, id, scopes, expire_time, revoke_time, false
      from read_tokens where digest = ${digest}
      union all
      select 'bootstrap', org_id, id, '{}', expire_time, revoke_time, uses >= max_uses
      from bootstrap_tokens where digest = ${digest}
      union all
      select 'partner', org_id, id, '{}', null, revoke_time, false
      from partner_keys where digest = ${digest}
    ) c
    join organizations o on o.org_id = c.org_id
    limit 1`.execute(tx);
  return rows[0];
}

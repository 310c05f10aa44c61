import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import type { Pager } from "@octomesh/mesh/paging";
import type { ServiceName } from "@octomesh/mesh/service-name";
import type { Logger } from "pino";
import type { KeyRing } from "./key-ring.ts";
import type { RevocationLog } from "./revocation-log.ts";
import type { IdentitySchema } from "./schema.ts";

/** What the service's parts need, in one plain object. */
export interface Dependencies {
  readonly database: Database<IdentitySchema>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly keyRing: KeyRing;
  readonly revocations: RevocationLog;
  readonly pager: Pager;
  /** Key from which refresh tokens are derived. */
  readonly refreshKey: Buffer;
  /** `iss` of the tokens: the trust domain. */
  readonly issuer: string;
  /** Folder of the file that holds the set-up code. */
  readonly stateDir: string;
  /** Erases an organisation at a sibling. */
  eraseAt(service: ServiceName, orgId: string): Promise<Erased>;
}

/** What one service erased of an organisation, by table or store, and what it still found afterwards. */
export interface Erased {
  readonly erased: Record<string, number>;
  readonly remaining: number;
}

import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import type { MasterKey } from "@octomesh/mesh/master-key";
import type { Outbox } from "@octomesh/mesh/outbox";
import type { Pager } from "@octomesh/mesh/paging";
import type { Logger } from "pino";
import type { BlobStore } from "./blob-store.ts";
import type { DefinitionWatchers } from "./definition-watchers.ts";
import type { Definitions } from "./definitions.ts";
import type { DemandGroups } from "./demand-groups.ts";
import type { Tables } from "./store/tables.ts";
import type { UploadDigests } from "./upload-digests.ts";

/** Everything that the service's parts work with, opened once in service.ts. */
export interface Dependencies {
  readonly database: Database<Tables>;
  readonly outbox: Outbox;
  readonly blobs: BlobStore;
  readonly digests: UploadDigests;
  readonly definitions: Definitions;
  readonly watchers: DefinitionWatchers;
  readonly pager: Pager;
  readonly masterKey: MasterKey;
  /** Key of download grants. */
  readonly grantKey: Buffer;
  /** How long a device without a stream waits before it asks again. */
  readonly pollIntervalMs: number;
  /** Refuses groups that are not the calling organisation's. */
  readonly demandGroups: DemandGroups;
  readonly clock: Clock;
  readonly log: Logger;
}

import type { Client } from "@connectrpc/connect";
import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import type { GroupCommit } from "@octomesh/mesh/group-commit";
import type { Pager } from "@octomesh/mesh/paging";
import type { Runtime } from "@octomesh/mesh/service";
import type { Turns } from "@octomesh/mesh/turns";
import type { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import type { DesiredStates } from "./desired-states.ts";
import type { ManifestKeys } from "./manifest-keys.ts";
import type { StoredState } from "./registration.ts";
import type { IncomingReport, ReportOutcome } from "./store/observed-states.ts";
import type { Heartbeat } from "./store/presence.ts";
import type { Store } from "./store.ts";
import type { DeviceRegistryTables } from "./tables.ts";

/** What the routes of this service work with. */
export interface ServiceContext {
  readonly database: Database<DeviceRegistryTables>;
  readonly store: Store;
  readonly clock: Clock;
  readonly pager: Pager;
  /** Turns of reads that may take long, so that they leave the database to what devices report. */
  readonly reads: Turns;
  readonly desiredStates: DesiredStates;
  readonly manifestKeys: ManifestKeys;
  readonly heartbeats: GroupCommit<Heartbeat, StoredState | undefined>;
  readonly reports: GroupCommit<IncomingReport, ReportOutcome>;
  readonly credentials: Pick<
    Client<typeof DeviceCredentialService>,
    "issueDeviceCredential" | "revokeDeviceCredentials"
  >;
  readonly delegated: Runtime["delegated"];
  readonly heartbeatIntervalMs: number;
}

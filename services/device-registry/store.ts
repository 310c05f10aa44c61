import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import { type DeviceGroupStore, deviceGroupStore } from "./store/device-groups.ts";
import { type DeviceStore, deviceStore } from "./store/devices.ts";
import { type ObservedStateStore, observedStateStore } from "./store/observed-states.ts";
import { type PresenceStore, presenceStore } from "./store/presence.ts";
import { type RegistrationStore, registrationStore } from "./store/registrations.ts";
import { type TenantStore, tenantStore } from "./store/tenant.ts";
import type { DeviceRegistryTables } from "./tables.ts";

/** Everything that this service keeps in PostgreSQL, by noun. */
export interface Store {
  readonly devices: DeviceStore;
  readonly registrations: RegistrationStore;
  readonly presence: PresenceStore;
  readonly deviceGroups: DeviceGroupStore;
  readonly observedStates: ObservedStateStore;
  readonly tenant: TenantStore;
}

/** Opens the store on the service's database. */
export function openStore(database: Database<DeviceRegistryTables>, clock: Clock): Store {
  return {
    devices: deviceStore(database, clock),
    registrations: registrationStore(database, clock),
    presence: presenceStore(database),
    deviceGroups: deviceGroupStore(database, clock),
    observedStates: observedStateStore(database),
    tenant: tenantStore(database),
  };
}

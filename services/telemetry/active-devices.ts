import { type CallOptions, type Client, Code, ConnectError } from "@connectrpc/connect";
import type { Call } from "@octomesh/mesh/call";
import type { Clock } from "@octomesh/mesh/clock";
import { fail, Reason } from "@octomesh/mesh/errors";
import { Device_State as State } from "@octomesh/proto/octomesh/device/v1/device_pb";
import type { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { LRUCache } from "lru-cache";

/** Knows which devices may report. */
export interface ActiveDevices {
  /**
   * Throws DEVICE_NOT_ACTIVE for a device that awaits approval: its credential is good, its figures are not wanted yet.
   * A revoked device does not come this far. Throws DEPENDENCY_UNAVAILABLE where the device registry cannot be asked.
   */
  demand(call: Call): Promise<void>;
}

/** What it needs. */
export interface ActiveDevicesOptions {
  readonly client: Pick<Client<typeof DeviceService>, "getDevice">;
  delegated(call: Call): CallOptions;
  readonly clock: Clock;
}

/** How long an active device is taken for one without asking again: it does not go back to waiting by itself. */
const activeMs = 10 * 60_000;
/** How long one that waits is told so without asking again: approval takes hold this soon. */
const waitingMs = 5_000;
const maxDevices = 200_000;

/** Asks the device registry once for each device and remembers the answer. */
export function createActiveDevices({ client, delegated, clock }: ActiveDevicesOptions): ActiveDevices {
  const known = new LRUCache<string, { isActive: boolean; untilMs: number }>({ max: maxDevices });
  const asking = new Map<string, Promise<boolean>>();

  const ask = async (call: Call): Promise<boolean> => {
    const { id } = call.caller;
    let isActive = false;
    try {
      isActive = (await client.getDevice({ id }, delegated(call))).state === State.ACTIVE;
    } catch (error) {
      if (!(error instanceof ConnectError) || error.code !== Code.NotFound) throw error;
    }
    known.set(id, { isActive, untilMs: clock.now() + (isActive ? activeMs : waitingMs) });
    return isActive;
  };

  const isActive = async (call: Call): Promise<boolean> => {
    const { id } = call.caller;
    const entry = known.get(id);
    if (entry !== undefined && entry.untilMs > clock.now()) return entry.isActive;
    let work = asking.get(id);
    if (work === undefined) {
      work = ask(call).finally(() => asking.delete(id));
      asking.set(id, work);
    }
    return work;
  };

  return {
    async demand(call) {
      if (await isActive(call)) return;
      throw fail(
        Reason.DEVICE_NOT_ACTIVE,
        "the device awaits approval: its reports are taken once it is approved",
        {},
        {
          retryAfterMs: waitingMs,
        },
      );
    },
  };
}

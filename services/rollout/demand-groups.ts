import { type CallOptions, type Client, Code, ConnectError } from "@connectrpc/connect";
import type { Call } from "@octomesh/mesh/call";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { DeviceGroupService } from "@octomesh/proto/octomesh/device/v1/device_group_service_pb";

/** Throws RESOURCE_NOT_FOUND, naming the group, where one is not the calling organisation's. */
export type DemandGroups = (call: Call, groupIds: readonly string[]) => Promise<void>;

/**
 * Asks the device registry, for the caller, whether every group exists: at most 64, as the contract bounds. A group of
 * another organisation is one that does not exist.
 */
export function createDemandGroups(
  client: Pick<Client<typeof DeviceGroupService>, "getDeviceGroup">,
  delegated: (call: Call) => CallOptions,
): DemandGroups {
  const demand = async (call: Call, id: string): Promise<void> => {
    try {
      await client.getDeviceGroup({ id }, delegated(call));
    } catch (error) {
      if (!(error instanceof ConnectError) || error.code !== Code.NotFound) throw error;
      throw fail(
        Reason.RESOURCE_NOT_FOUND,
        `there is no device group ${id}`,
        { type: "device_group", id },
        { cause: error },
      );
    }
  };
  return async (call, groupIds) => {
    await Promise.all(groupIds.map((id) => demand(call, id)));
  };
}

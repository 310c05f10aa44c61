import { createHash } from "node:crypto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { once } from "@octomesh/mesh/idempotency";
import type { PageRequest } from "@octomesh/mesh/paging";
import { DeviceGroupSchema } from "@octomesh/proto/octomesh/device/v1/device_group_pb";
import {
  CreateDeviceGroupRequestSchema,
  type DeviceGroupService,
} from "@octomesh/proto/octomesh/device/v1/device_group_service_pb";
import { deviceChange } from "../device-change.ts";
import { deviceGroupMessage } from "../device-group.ts";
import type { ServiceContext } from "../service-context.ts";
import { assertStorable } from "../store/database-text.ts";
import type { DeviceGroupPosition } from "../store/device-groups.ts";

const createMethod = "octomesh.device.v1.DeviceGroupService/CreateDeviceGroup";
const listMethod = "octomesh.device.v1.DeviceGroupService/ListDeviceGroups";

/** Groups of devices. */
export function deviceGroupRoutes(context: ServiceContext): ServiceImpl<typeof DeviceGroupService> {
  const { database, store, pager, reads, desiredStates } = context;
  return {
    async createDeviceGroup(request, handlerContext) {
      const call = callOf(handlerContext);
      const { displayName, description, requestId } = request;
      assertStorable({ display_name: displayName, description, request_id: requestId });
      const digest = createHash("sha256")
        .update(
          toBinary(
            CreateDeviceGroupRequestSchema,
            create(CreateDeviceGroupRequestSchema, { displayName, description }),
          ),
        )
        .digest();
      const { answer, replayed } = await database.write(call, (tx) =>
        once(tx, call, createMethod, requestId, digest, async () => {
          const group = await store.deviceGroups.create(tx, { orgId: call.orgId, displayName, description });
          call.audit?.resource("device_group", group.id, displayName);
          return toBinary(DeviceGroupSchema, deviceGroupMessage(group));
        }),
      );
      if (replayed) handlerContext.responseHeader.set("octomesh-replayed", "true");
      return fromBinary(DeviceGroupSchema, answer);
    },

    async getDeviceGroup(request, handlerContext) {
      const { orgId } = callOf(handlerContext);
      return deviceGroupMessage(await store.deviceGroups.get(orgId, request.id));
    },

    async listDeviceGroups(request, handlerContext) {
      const { orgId, signal } = callOf(handlerContext);
      const { pageSize, pageToken } = request;
      const page: PageRequest = { method: listMethod, orgId, filter: [], pageSize, pageToken };
      const { limit, after } = pager.read(page);
      const records = await reads.take(orgId, async () => {
        signal.throwIfAborted();
        return await store.deviceGroups.list(orgId, { after: positionOf(after), limit: limit + 1 });
      });
      const groups = records.slice(0, limit);
      const last = groups.at(-1);
      const nextPageToken =
        records.length > limit && last !== undefined ? pager.next(page, [last.displayName, last.id]) : "";
      return { deviceGroups: groups.map(deviceGroupMessage), nextPageToken };
    },

    async updateDeviceGroup(request, handlerContext) {
      const call = callOf(handlerContext);
      const { id, displayName, description, etag } = request;
      assertStorable({ display_name: displayName ?? "", description: description ?? "" });
      call.audit?.resource("device_group", id, displayName);
      return deviceGroupMessage(await store.deviceGroups.update(call, { id, displayName, description, etag }));
    },

    async deleteDeviceGroup(request, handlerContext) {
      const call = callOf(handlerContext);
      call.audit?.resource("device_group", request.id);
      await store.deviceGroups.delete(call, request.id);
      desiredStates.devicesChanged(call.orgId, deviceChange(undefined));
      return {};
    },

    async addGroupDevices(request, handlerContext) {
      const call = callOf(handlerContext);
      call.audit?.resource("device_group", request.id);
      call.audit?.note("devices", String(request.deviceIds.length));
      const group = await store.deviceGroups.addDevices(call, request.id, request.deviceIds);
      desiredStates.devicesChanged(call.orgId, deviceChange(request.deviceIds));
      return deviceGroupMessage(group);
    },

    async removeGroupDevices(request, handlerContext) {
      const call = callOf(handlerContext);
      call.audit?.resource("device_group", request.id);
      call.audit?.note("devices", String(request.deviceIds.length));
      const group = await store.deviceGroups.removeDevices(call, request.id, request.deviceIds);
      desiredStates.devicesChanged(call.orgId, deviceChange(request.deviceIds));
      return deviceGroupMessage(group);
    },
  };
}

function positionOf(after: readonly string[] | undefined): DeviceGroupPosition | undefined {
  const [displayName, id] = after ?? [];
  return displayName === undefined || id === undefined ? undefined : { displayName, id };
}

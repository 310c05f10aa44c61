import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { PageRequest } from "@octomesh/mesh/paging";
import type { Device } from "@octomesh/proto/octomesh/device/v1/device_pb";
import type { DeviceService, ListDevicesRequest } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { type DeviceRecord, deviceMessage, presenceFilterOf, storedStateOf } from "../device.ts";
import { deviceChange } from "../device-change.ts";
import type { ServiceContext } from "../service-context.ts";
import { assertStorable } from "../store/database-text.ts";
import type { DevicePosition } from "../store/devices.ts";

const revokeTimeoutMs = 15_000;

/** Get, list and change devices. */
export function deviceRoutes(
  context: ServiceContext,
): Pick<
  ServiceImpl<typeof DeviceService>,
  "getDevice" | "listDevices" | "updateDevice" | "approveDevice" | "revokeDevice" | "allowReenrolment"
> {
  const { store, clock, pager, reads, credentials, delegated, desiredStates, heartbeatIntervalMs } = context;
  const message = (record: DeviceRecord): Device => deviceMessage(record, { nowMs: clock.now(), heartbeatIntervalMs });

  return {
    async getDevice(request, handlerContext) {
      const call = callOf(handlerContext);
      return message(await store.devices.get(call.orgId, request.id));
    },

    async listDevices(request, handlerContext) {
      const call = callOf(handlerContext);
      assertStorable({ device_identifier: request.deviceIdentifier });
      const page = pageRequest(call.orgId, request);
      const { limit, after } = pager.read(page);
      const filter = {
        state: storedStateOf(request.state),
        platform: request.platform === 0 ? undefined : request.platform,
        groupId: request.groupId || undefined,
        presence: presenceFilterOf(request.presence),
        deviceIdentifier: request.deviceIdentifier || undefined,
      };
      const records = await reads.take(call.orgId, async () => {
        call.signal.throwIfAborted();
        const presence = { nowMs: clock.now(), heartbeatIntervalMs };
        return await store.devices.list(call.orgId, filter, { after: positionOf(after), limit: limit + 1 }, presence);
      });
      const devices = records.slice(0, limit);
      const last = devices.at(-1);
      const nextPageToken =
        records.length > limit && last !== undefined ? pager.next(page, [String(last.createMs), last.id]) : "";
      return { devices: devices.map(message), nextPageToken };
    },

    async updateDevice(request, handlerContext) {
      const call = callOf(handlerContext);
      const labels = request.setLabels ? request.labels : undefined;
      if (!request.setLabels && Object.keys(request.labels).length > 0) {
        throw fail(Reason.VALIDATION_FAILED, "labels are replaced only where set_labels is true", {
          field: "set_labels",
        });
      }
      assertStorable({ display_name: request.displayName ?? "" });
      assertStorable({
        labels: Object.entries(labels ?? {})
          .flat()
          .join(""),
      });
      call.audit?.resource("device", request.id);
      const { id, displayName, etag } = request;
      return message(await store.devices.update(call, { id, displayName, labels, etag }));
    },

    async approveDevice(request, handlerContext) {
      const call = callOf(handlerContext);
      call.audit?.resource("device", request.id);
      const device = await store.devices.approve(call, request.id);
      desiredStates.devicesChanged(call.orgId, deviceChange([request.id]));
      return message(device);
    },

    async revokeDevice(request, handlerContext) {
      const call = callOf(handlerContext);
      const { id } = request;
      const options = { ...delegated(call), timeoutMs: revokeTimeoutMs };
      const mark = await store.devices.mark(call.orgId, id);
      await credentials.revokeDeviceCredentials({ deviceId: id }, options);
      call.audit?.resource("device", id);
      if (request.reason !== "") call.audit?.note("reason", request.reason);
      const { device, overtaken } = await store.devices.revoke(call, id, mark);
      desiredStates.devicesChanged(call.orgId, deviceChange([id]));
      // A credential that was issued between the two steps above must not outlive them.
      if (overtaken) await credentials.revokeDeviceCredentials({ deviceId: id }, options);
      return message(device);
    },

    async allowReenrolment(request, handlerContext) {
      const call = callOf(handlerContext);
      call.audit?.resource("device", request.id);
      return message(await store.devices.allowReenrolment(call, request.id));
    },
  };
}

function pageRequest(orgId: string, request: ListDevicesRequest): PageRequest {
  return {
    method: "octomesh.device.v1.DeviceService/ListDevices",
    orgId,
    filter: [
      String(request.state),
      String(request.platform),
      request.groupId,
      String(request.presence),
      request.deviceIdentifier,
    ],
    pageSize: request.pageSize,
    pageToken: request.pageToken,
  };
}

function positionOf(after: readonly string[] | undefined): DevicePosition | undefined {
  const [createMs, id] = after ?? [];
  return createMs === undefined || id === undefined ? undefined : { createMs: Number(createMs), id };
}

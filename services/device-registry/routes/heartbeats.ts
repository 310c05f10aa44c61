import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import type { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { deviceNotActive } from "../desired-states.ts";
import type { ServiceContext } from "../service-context.ts";
import { assertStorable } from "../store/database-text.ts";

/** Heartbeat: answered once the presence is stored, together with that of others. */
export function heartbeatRoutes(context: ServiceContext): Pick<ServiceImpl<typeof DeviceService>, "heartbeat"> {
  const { clock, heartbeats, desiredStates, heartbeatIntervalMs } = context;
  const heartbeatInterval = durationFromMs(heartbeatIntervalMs);
  return {
    async heartbeat(request, handlerContext) {
      const { orgId } = callOf(handlerContext);
      const { id: deviceId, bootId, sequence, sdkVersion, osVersion, appVersion } = request;
      assertStorable({
        boot_id: bootId,
        sdk_version: sdkVersion,
        os_version: osVersion,
        app_version: appVersion,
      });
      const timeMs = clock.now();
      const state = await heartbeats.submit({
        orgId,
        deviceId,
        bootId,
        sequence,
        sdkVersion,
        osVersion,
        appVersion,
        timeMs,
      });
      if (state !== "active") throw deviceNotActive(deviceId);
      return {
        serverTime: timestampFromMs(clock.now()),
        desiredStateEtag: await desiredStates.etag(orgId, deviceId),
        heartbeatInterval,
      };
    },
  };
}

import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { deviceNotActive } from "../desired-states.ts";
import { doubledVersion } from "../observed-state.ts";
import type { ServiceContext } from "../service-context.ts";
import { assertStorable } from "../store/database-text.ts";

/** What devices say they run: reported, read and counted. */
export function observedStateRoutes(
  context: ServiceContext,
): Pick<ServiceImpl<typeof DeviceService>, "reportObservedState" | "getObservedState" | "countObservedVersions"> {
  const { store, clock, reads, reports } = context;
  return {
    async reportObservedState(request, handlerContext) {
      const { orgId } = callOf(handlerContext);
      const { id: deviceId, bootId, sequence } = request;
      assertStorable({ boot_id: bootId });
      const doubled = doubledVersion(request.models);
      if (doubled !== undefined) {
        throw fail(Reason.VALIDATION_FAILED, "the report names a version of a model twice", { version_id: doubled });
      }
      const models = request.models.map(({ modelId, versionId, state, failure, previousVersionId }) => ({
        modelId,
        versionId,
        state,
        failure,
        previousVersionId,
      }));
      const timeMs = clock.now();
      const outcome = await reports.submit({ orgId, deviceId, bootId, sequence, models, timeMs });
      if (outcome.deviceState !== "active") throw deviceNotActive(deviceId);
      return { applied: outcome.applied };
    },

    async getObservedState(request, handlerContext) {
      const { orgId } = callOf(handlerContext);
      const observed = await store.observedStates.get(orgId, request.id);
      if (observed === undefined) return { deviceId: request.id };
      return {
        deviceId: request.id,
        bootId: observed.bootId,
        sequence: observed.sequence,
        models: observed.models.map((model) => ({ ...model })),
        updateTime: timestampFromMs(observed.updateMs),
      };
    },

    async countObservedVersions(request, handlerContext) {
      const { orgId, signal } = callOf(handlerContext);
      const counts = await reads.take(orgId, async () => {
        signal.throwIfAborted();
        return await store.observedStates.countVersions(orgId, request.modelId);
      });
      return { counts: counts.map((count) => ({ ...count })) };
    },
  };
}

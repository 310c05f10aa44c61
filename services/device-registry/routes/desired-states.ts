import { create } from "@bufbuild/protobuf";
import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { Call } from "@octomesh/mesh/call";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason, reasonOf } from "@octomesh/mesh/errors";
import { type DesiredState, DesiredStateSchema } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import type { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { deviceNotActive, type Resolution } from "../desired-states.ts";
import type { ServiceContext } from "../service-context.ts";

/** What devices are to run: asked for, waited for, and streamed. */
export function desiredStateRoutes(
  context: ServiceContext,
): Pick<ServiceImpl<typeof DeviceService>, "getDesiredState" | "watchDesiredState"> {
  const { desiredStates, clock } = context;

  const present = (call: Call, deviceId: string, resolution: Resolution): DesiredState => {
    if (resolution.active) return visibleTo(call, resolution.state);
    if (call.caller.kind === "device") throw deviceNotActive(deviceId);
    if (!resolution.exists) {
      throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such device", { type: "device", id: deviceId });
    }
    // A device that may not act is to run nothing.
    return create(DesiredStateSchema, { deviceId, createTime: timestampFromMs(clock.now()) });
  };

  return {
    async getDesiredState(request, handlerContext) {
      const call = callOf(handlerContext);
      const { id, etag } = request;
      const waitMs = request.wait === undefined ? 0 : durationMs(request.wait);
      const changed =
        etag === "" || waitMs <= 0 ? undefined : await firstChange(context, call, { deviceId: id, etag, waitMs });
      const state =
        changed === undefined ? present(call, id, await desiredStates.get(call.orgId, id)) : visibleTo(call, changed);
      if (state.etag !== "") handlerContext.responseHeader.set("etag", `"${state.etag}"`);
      return state;
    },

    async *watchDesiredState(request, handlerContext) {
      const call = callOf(handlerContext);
      yield* desiredStates.watch(call.orgId, request.id, request.etag, call.signal);
    },
  };
}

/** The first state that differs from the one held, within a time; undefined if none came, or the device may not act. */
async function firstChange(
  { desiredStates }: ServiceContext,
  call: Call,
  wish: { deviceId: string; etag: string; waitMs: number },
): Promise<DesiredState | undefined> {
  const signal = call.waitSignal();
  const over = new AbortController();
  const end = (): void => over.abort();
  const timer = setTimeout(end, wish.waitMs);
  signal.addEventListener("abort", end, { once: true });
  if (signal.aborted) end();
  const { deviceId, etag } = wish;
  const watcher = call.caller.kind === "device" ? "device" : "bystander";
  try {
    for await (const state of desiredStates.watch(call.orgId, deviceId, etag, over.signal, watcher)) return state;
    signal.throwIfAborted();
    return undefined;
  } catch (error) {
    if (reasonOf(error) === Reason.DEVICE_NOT_ACTIVE) return undefined;
    throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
  }
}

/** Only the device itself gets its download grants. */
function visibleTo(call: Call, state: DesiredState): DesiredState {
  if (call.caller.kind === "device") return state;
  return create(DesiredStateSchema, {
    ...state,
    models: state.models.map((model) => ({ ...model, downloadGrant: "" })),
  });
}

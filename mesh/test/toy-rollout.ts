import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { ArtifactService } from "@octomesh/proto/octomesh/model/v1/artifact_service_pb";
import { type Model, ModelSchema } from "@octomesh/proto/octomesh/model/v1/model_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { callOf } from "../call-context.ts";
import { fail, Reason } from "../errors.ts";
import { newId } from "../ids.ts";
import type { CreateService } from "../service.ts";

/** A rollout service that keeps models in memory, and has a method for each way in which a call can go. */
export function createToyRollout(): CreateService {
  const models = new Map<string, Model>();
  return async () => ({
    start: async () => undefined,
    stop: async () => undefined,
    http: [
      {
        method: ArtifactService.method.downloadArtifact,
        async handle(call, _request, response) {
          response.setHeader("content-type", "application/octet-stream");
          const body = response as NodeJS.WritableStream;
          body.write("first ");
          if (call.caller.kind === "api_key") {
            body.end("last");
            return;
          }
          await new Promise((resolve) => call.signal.addEventListener("abort", resolve, { once: true }));
        },
      },
    ],
    routes(router) {
      router.service(ArtifactService, {});
      router.service(AssignmentService, {
        resolveDesiredStates: () => ({ cursor: "1", desiredStates: [] }),
      });
      router.service(DeviceService, {
        async registerDevice(_request, context) {
          callOf(context).audit?.skip("toy");
          return {};
        },
        async getDevice(request, context) {
          return { id: request.id, orgId: callOf(context).orgId };
        },
        async *watchDesiredState(request, context) {
          const call = callOf(context);
          yield { deviceId: request.id, etag: "1", models: [] };
          await new Promise((resolve) => call.signal.addEventListener("abort", resolve, { once: true }));
        },
      });
      router.service(ModelService, {
        async createModel(request, context) {
          const call = callOf(context);
          const model = create(ModelSchema, {
            id: newId("mdl"),
            orgId: call.orgId,
            name: request.name,
            description: request.description,
            createTime: timestampFromMs(1_700_000_000_000),
          });
          models.set(model.name, model);
          if (request.name !== "unaudited") call.audit?.skip("the toy has no database");
          return model;
        },
        async getModel(request, context) {
          const call = callOf(context);
          if (request.id === "boom") throw new Error("secret text of a bug");
          if (request.id === "slow") {
            await new Promise((resolve) => context.signal.addEventListener("abort", resolve, { once: true }));
            throw context.signal.reason;
          }
          if (request.id === "busy") throw fail(Reason.OVERLOADED, "too much", { queue: "7" }, { retryAfterMs: 1500 });
          const model = models.get(request.id);
          if (model === undefined || model.orgId !== call.orgId) {
            throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such model", { id: request.id });
          }
          context.responseHeader.set("x-toy", "header");
          context.responseTrailer.set("x-toy-end", "trailer");
          return model;
        },
        async listModels(_request, context) {
          const { orgId } = callOf(context);
          return { models: [...models.values()].filter((model) => model.orgId === orgId), nextPageToken: "" };
        },
      });
    },
  });
}

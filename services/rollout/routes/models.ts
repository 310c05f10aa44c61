import { create } from "@bufbuild/protobuf";
import { EmptySchema, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { isId, newId } from "@octomesh/mesh/ids";
import { type Model, ModelSchema } from "@octomesh/proto/octomesh/model/v1/model_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import type { Dependencies } from "../dependencies.ts";
import { deleteModel, etagOf, getModel, insertModel, listModels, type ModelRow, updateModel } from "../store/models.ts";
import { createOnce } from "./create-once.ts";

/** The rpcs of models. */
export function modelRoutes(deps: Dependencies): ServiceImpl<typeof ModelService> {
  const { database, clock, pager } = deps;
  return {
    async createModel(request, ctx) {
      const call = callOf(ctx);
      const { name, description } = request;
      if (isId("mdl", name)) throw fail(Reason.VALIDATION_FAILED, "name: it has the form of an id", { field: "name" });
      return await createOnce(deps, ctx, call, ModelService.method.createModel, request, async (tx) => {
        const time = new Date(clock.now());
        const id = newId("mdl", time.getTime());
        const row = await insertModel(tx, { orgId: call.orgId, id, name, description, time });
        call.audit?.resource("model", id, name);
        return modelMessage(row);
      });
    },

    async getModel(request, ctx) {
      const { orgId } = callOf(ctx);
      return modelMessage(await database.read(orgId, (tx) => getModel(tx, orgId, request.id)));
    },

    async listModels(request, ctx) {
      const { orgId } = callOf(ctx);
      const { pageSize, pageToken } = request;
      const page = { method: "octomesh.model.v1.ModelService/ListModels", orgId, filter: [], pageSize, pageToken };
      const { limit, after } = pager.read(page);
      const rows = await database.read(orgId, (tx) => listModels(tx, orgId, after?.[0] ?? "", limit + 1));
      const shown = rows.slice(0, limit);
      const last = shown.at(-1);
      return {
        models: shown.map(modelMessage),
        nextPageToken: rows.length > limit && last !== undefined ? pager.next(page, [last.name]) : "",
      };
    },

    async updateModel(request, ctx) {
      const call = callOf(ctx);
      const { id, description, etag } = request;
      const row = await database.write(call, async (tx) => {
        const updated = await updateModel(tx, call.orgId, id, { description, etag, time: new Date(clock.now()) });
        call.audit?.resource("model", updated.id, updated.name);
        return updated;
      });
      return modelMessage(row);
    },

    async deleteModel(request, ctx) {
      const call = callOf(ctx);
      await database.write(call, async (tx) => {
        const deleted = await deleteModel(tx, call.orgId, request.id);
        call.audit?.resource("model", deleted.id, deleted.name);
      });
      return create(EmptySchema);
    },
  };
}

function modelMessage(row: ModelRow): Model {
  return create(ModelSchema, {
    id: row.id,
    orgId: row.org_id,
    name: row.name,
    description: row.description,
    createTime: timestampFromDate(row.create_time),
    updateTime: timestampFromDate(row.update_time),
    etag: etagOf(row.revision),
  });
}

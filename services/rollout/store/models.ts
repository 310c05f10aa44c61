import { constraintOf, sqlStateOf } from "@octomesh/mesh/database-error";
import { fail, Reason } from "@octomesh/mesh/errors";
import { isId } from "@octomesh/mesh/ids";
import type { Selectable } from "kysely";
import { sql } from "kysely";
import type { Tables, Tx } from "./tables.ts";

/** A model as it is stored. */
export type ModelRow = Selectable<Tables["models"]>;

/** Stores a model. Refuses a name that is taken with RESOURCE_EXISTS. */
export async function insertModel(
  tx: Tx,
  model: { orgId: string; id: string; name: string; description: string; time: Date },
): Promise<ModelRow> {
  const { orgId, id, name, description, time } = model;
  const row = await tx
    .insertInto("models")
    .values({ org_id: orgId, id, name, description, create_time: time, update_time: time })
    .onConflict((conflict) => conflict.columns(["org_id", "name"]).doNothing())
    .returningAll()
    .executeTakeFirst();
  if (row === undefined) throw fail(Reason.RESOURCE_EXISTS, `there is a model named ${name}`, { name });
  return row;
}

/** Finds a model by its id or its name. Refuses with RESOURCE_NOT_FOUND. */
export async function getModel(tx: Tx, orgId: string, idOrName: string): Promise<ModelRow> {
  const row = await tx
    .selectFrom("models")
    .selectAll()
    .where("org_id", "=", orgId)
    .where(isId("mdl", idOrName) ? "id" : "name", "=", idOrName)
    .executeTakeFirst();
  if (row === undefined) throw modelNotFound(idOrName);
  return row;
}

/** Models in order of name, after a name. */
export async function listModels(tx: Tx, orgId: string, after: string, limit: number): Promise<ModelRow[]> {
  return await tx
    .selectFrom("models")
    .selectAll()
    .where("org_id", "=", orgId)
    .where("name", ">", after)
    .orderBy("name")
    .limit(limit)
    .execute();
}

/** Changes a model; refuses with ETAG_MISMATCH where it is not at `revision` any more (if given). */
export async function updateModel(
  tx: Tx,
  orgId: string,
  idOrName: string,
  change: { description?: string | undefined; etag: string; time: Date },
): Promise<ModelRow> {
  const model = await tx
    .selectFrom("models")
    .selectAll()
    .where("org_id", "=", orgId)
    .where(isId("mdl", idOrName) ? "id" : "name", "=", idOrName)
    .forUpdate()
    .executeTakeFirst();
  if (model === undefined) throw modelNotFound(idOrName);
  if (change.etag !== "" && change.etag !== etagOf(model.revision)) {
    throw fail(Reason.ETAG_MISMATCH, "the model changed since it was read", { etag: etagOf(model.revision) });
  }
  return await tx
    .updateTable("models")
    .set({
      description: change.description ?? model.description,
      update_time: change.time,
      revision: sql`revision + 1`,
    })
    .where("org_id", "=", orgId)
    .where("id", "=", model.id)
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Deletes a model and its versions. Refuses with RESOURCE_IN_USE while a rollout refers to it. */
export async function deleteModel(tx: Tx, orgId: string, idOrName: string): Promise<ModelRow> {
  const model = await getModel(tx, orgId, idOrName);
  try {
    const row = await tx
      .deleteFrom("models")
      .where("org_id", "=", orgId)
      .where("id", "=", model.id)
      .returningAll()
      .executeTakeFirst();
    if (row === undefined) throw modelNotFound(idOrName);
    return row;
  } catch (error) {
    if (sqlStateOf(error) === "23503" && (constraintOf(error) ?? "").startsWith("rollouts_")) {
      throw fail(
        Reason.RESOURCE_IN_USE,
        `rollouts refer to the model ${model.name}`,
        { id: model.id },
        { cause: error },
      );
    }
    throw error;
  }
}

/** The etag of a revision. */
export function etagOf(revision: bigint): string {
  return `r${revision.toString(36)}`;
}

function modelNotFound(idOrName: string) {
  return fail(Reason.RESOURCE_NOT_FOUND, `there is no model ${idOrName}`, { type: "model", id: idOrName });
}

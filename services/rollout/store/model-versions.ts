import { constraintOf, sqlStateOf } from "@octomesh/mesh/database-error";
import { fail, Reason } from "@octomesh/mesh/errors";
import { isId } from "@octomesh/mesh/ids";
import type { Insertable, Selectable } from "kysely";
import type { Tables, Tx } from "./tables.ts";

/** A version as it is stored, with its artifact's facts. */
export type ModelVersionRow = Selectable<Tables["model_versions"]> & {
  sha256: Buffer;
  size_bytes: bigint;
  artifact_create_time: Date;
};

/** Stores a version. Refuses a version that exists with RESOURCE_EXISTS, a lost artifact with RESOURCE_NOT_FOUND. */
export async function insertModelVersion(tx: Tx, row: Insertable<Tables["model_versions"]>): Promise<ModelVersionRow> {
  try {
    await tx.insertInto("model_versions").values(row).execute();
  } catch (error) {
    const constraint = constraintOf(error) ?? "";
    if (sqlStateOf(error) === "23505" && constraint === "model_versions_version") {
      const message = `version ${row.version} exists; versions never change, so publish the next`;
      throw fail(Reason.RESOURCE_EXISTS, message, { version: row.version }, { cause: error });
    }
    if (sqlStateOf(error) === "23503") {
      throw fail(Reason.RESOURCE_NOT_FOUND, "the model or the artifact was deleted meanwhile", {}, { cause: error });
    }
    throw error;
  }
  return await selectVersions(tx, row.org_id).where("model_versions.id", "=", row.id).executeTakeFirstOrThrow();
}

/**
 * Finds a version of a model by its number or id, or the newest published one where `version` is `latest` and
 * `allowLatest` is set. Refuses with RESOURCE_NOT_FOUND.
 */
export async function getModelVersion(
  tx: Tx,
  orgId: string,
  modelId: string,
  version: string,
  allowLatest = false,
): Promise<ModelVersionRow> {
  const versions = selectVersions(tx, orgId).where("model_versions.model_id", "=", modelId);
  const row =
    allowLatest && version === "latest"
      ? await versions
          .where("model_versions.state", "=", "published")
          .orderBy("model_versions.sequence", "desc")
          .limit(1)
          .executeTakeFirst()
      : await versions
          .where(isId("mvr", version) ? "model_versions.id" : "model_versions.version", "=", version)
          .executeTakeFirst();
  if (row === undefined) {
    throw fail(Reason.RESOURCE_NOT_FOUND, `the model has no version ${version}`, {
      type: "model_version",
      version,
    });
  }
  return row;
}

/** Versions of a model, newest first, older than a position. */
export async function listModelVersions(
  tx: Tx,
  orgId: string,
  modelId: string,
  before: bigint | undefined,
  limit: number,
): Promise<ModelVersionRow[]> {
  let versions = selectVersions(tx, orgId).where("model_versions.model_id", "=", modelId);
  if (before !== undefined) versions = versions.where("model_versions.sequence", "<", before);
  return await versions.orderBy("model_versions.sequence", "desc").limit(limit).execute();
}

/** Versions by id, with the names of their models. */
export async function versionsById(
  tx: Tx,
  orgId: string,
  ids: readonly string[],
): Promise<(ModelVersionRow & { model_name: string })[]> {
  if (ids.length === 0) return [];
  return await selectVersions(tx, orgId)
    .innerJoin("models", (join) =>
      join.onRef("models.org_id", "=", "model_versions.org_id").onRef("models.id", "=", "model_versions.model_id"),
    )
    .select("models.name as model_name")
    .where("model_versions.id", "in", [...ids])
    .execute();
}

/** Withdraws a version from new rollouts; one that is withdrawn already stays as it is. Answers whether it changed. */
export async function deprecateModelVersion(tx: Tx, orgId: string, id: string, time: Date): Promise<boolean> {
  const result = await tx
    .updateTable("model_versions")
    .set({ state: "deprecated", deprecate_time: time })
    .where("org_id", "=", orgId)
    .where("id", "=", id)
    .where("state", "=", "published")
    .executeTakeFirst();
  return result.numUpdatedRows > 0n;
}

function selectVersions(tx: Tx, orgId: string) {
  return tx
    .selectFrom("model_versions")
    .innerJoin("artifacts", (join) =>
      join
        .onRef("artifacts.org_id", "=", "model_versions.org_id")
        .onRef("artifacts.id", "=", "model_versions.artifact_id"),
    )
    .selectAll("model_versions")
    .select(["artifacts.sha256", "artifacts.size_bytes", "artifacts.create_time as artifact_create_time"])
    .where("model_versions.org_id", "=", orgId);
}

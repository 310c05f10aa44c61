import { create } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf, withOrganization } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import {
  type ModelVersion,
  ModelVersion_State,
  ModelVersionSchema,
} from "@octomesh/proto/octomesh/model/v1/model_version_pb";
import { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import type { Dependencies } from "../dependencies.ts";
import { encodeManifest, signManifest } from "../manifest.ts";
import { ensureManifestKey, openManifestKey } from "../manifest-keys.ts";
import { parseSemanticVersion } from "../semantic-version.ts";
import { getArtifact } from "../store/artifacts.ts";
import { listManifestKeys } from "../store/manifest-keys.ts";
import {
  deprecateModelVersion,
  getModelVersion,
  insertModelVersion,
  listModelVersions,
  type ModelVersionRow,
} from "../store/model-versions.ts";
import { getModel } from "../store/models.ts";
import { artifactMessage } from "./artifacts.ts";
import { createOnce } from "./create-once.ts";

/** The rpcs of model versions. */
export function modelVersionRoutes(deps: Dependencies): ServiceImpl<typeof ModelVersionService> {
  const { database, clock, masterKey, pager } = deps;
  return {
    async createModelVersion(request, ctx) {
      const call = callOf(ctx);
      const { orgId } = call;
      const { version, format } = request;
      if (parseSemanticVersion(version) === undefined) {
        const message = "version: it is not of the form of Semantic Versioning 2.0.0, such as 1.2.0";
        throw fail(Reason.VALIDATION_FAILED, message, { field: "version" });
      }
      return await createOnce(deps, ctx, call, ModelVersionService.method.createModelVersion, request, async (tx) => {
        const time = new Date(clock.now());
        const model = await getModel(tx, orgId, request.modelId);
        const artifact = await getArtifact(tx, orgId, request.artifactId);
        const key = await ensureManifestKey(tx, masterKey, orgId, time.getTime());
        const id = newId("mvr", time.getTime());
        const manifest = encodeManifest({
          orgId,
          modelId: model.id,
          modelName: model.name,
          version,
          versionId: id,
          artifactId: artifact.id,
          sha256: artifact.sha256,
          sizeBytes: Number(artifact.size_bytes),
          format,
          createTimeMs: time.getTime(),
        });
        const row = await insertModelVersion(tx, {
          org_id: orgId,
          id,
          model_id: model.id,
          version,
          artifact_id: artifact.id,
          format,
          manifest: Buffer.from(manifest),
          signature: signManifest(manifest, openManifestKey(masterKey, key)),
          key_id: key.id,
          release_notes: request.releaseNotes,
          create_time: time,
        });
        call.audit?.resource("model_version", id, `${model.name} ${version}`);
        call.audit?.note("sha256", artifact.sha256.toString("hex"));
        return versionMessage(row);
      });
    },

    async getModelVersion(request, ctx) {
      const { orgId } = callOf(ctx);
      const row = await database.read(orgId, async (tx) => {
        const model = await getModel(tx, orgId, request.modelId);
        return await getModelVersion(tx, orgId, model.id, request.version, true);
      });
      return versionMessage(row);
    },

    async listModelVersions(request, ctx) {
      const { orgId } = callOf(ctx);
      const page = {
        method: "octomesh.model.v1.ModelVersionService/ListModelVersions",
        orgId,
        filter: [request.modelId],
        pageSize: request.pageSize,
        pageToken: request.pageToken,
      };
      const { limit, after } = pager.read(page);
      const rows = await database.read(orgId, async (tx) => {
        const model = await getModel(tx, orgId, request.modelId);
        const before = after?.[0] === undefined ? undefined : BigInt(after[0]);
        return await listModelVersions(tx, orgId, model.id, before, limit + 1);
      });
      const shown = rows.slice(0, limit);
      const last = shown.at(-1);
      return {
        modelVersions: shown.map(versionMessage),
        nextPageToken: rows.length > limit && last !== undefined ? pager.next(page, [last.sequence.toString()]) : "",
      };
    },

    async deprecateModelVersion(request, ctx) {
      const call = callOf(ctx);
      const { orgId } = call;
      const row = await database.write(call, async (tx) => {
        const model = await getModel(tx, orgId, request.modelId);
        const { id, version } = await getModelVersion(tx, orgId, model.id, request.version);
        call.audit?.resource("model_version", id, `${model.name} ${version}`);
        const changed = await deprecateModelVersion(tx, orgId, id, new Date(clock.now()));
        const found = await getModelVersion(tx, orgId, model.id, id);
        if (!changed) call.audit?.skip("unchanged");
        return found;
      });
      return versionMessage(row);
    },

    async listManifestKeys(request, ctx) {
      const call = withOrganization(callOf(ctx), request.orgId);
      const keys = await database.write(call, async (tx) => {
        await ensureManifestKey(tx, masterKey, request.orgId, clock.now());
        return await listManifestKeys(tx, request.orgId);
      });
      return { keys: keys.map((key) => ({ id: key.id, publicKey: Uint8Array.from(key.public_key) })) };
    },
  };
}

function versionMessage(row: ModelVersionRow): ModelVersion {
  return create(ModelVersionSchema, {
    id: row.id,
    orgId: row.org_id,
    modelId: row.model_id,
    version: row.version,
    artifact: artifactMessage({
      org_id: row.org_id,
      id: row.artifact_id,
      sha256: row.sha256,
      size_bytes: row.size_bytes,
      create_time: row.artifact_create_time,
    }),
    format: row.format,
    state: row.state === "published" ? ModelVersion_State.PUBLISHED : ModelVersion_State.DEPRECATED,
    manifest: Uint8Array.from(row.manifest),
    signature: Uint8Array.from(row.signature),
    keyId: row.key_id,
    releaseNotes: row.release_notes,
    createTime: timestampFromDate(row.create_time),
    ...(row.deprecate_time === null ? {} : { deprecateTime: timestampFromDate(row.deprecate_time) }),
  });
}

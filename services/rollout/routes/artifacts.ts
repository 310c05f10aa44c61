import { create } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import {
  type Artifact,
  ArtifactSchema,
  type ArtifactUpload,
  ArtifactUploadSchema,
} from "@octomesh/proto/octomesh/model/v1/artifact_pb";
import type { ArtifactService } from "@octomesh/proto/octomesh/model/v1/artifact_service_pb";
import { beginUpload, findUpload, finishUpload, maxChunkBytes, type UploadView } from "../artifact-uploads.ts";
import type { Dependencies } from "../dependencies.ts";
import { type ArtifactRow, getArtifact } from "../store/artifacts.ts";

/** The rpcs of artifacts. Chunks and downloads are HTTP: artifact-append.ts and artifact-download.ts. */
export function artifactRoutes(deps: Dependencies): ServiceImpl<typeof ArtifactService> {
  const { database } = deps;
  return {
    async createArtifactUpload(request, ctx) {
      const sha256 = Buffer.from(request.sha256, "hex");
      return uploadMessage(await beginUpload(deps, callOf(ctx), { sha256, sizeBytes: request.sizeBytes }));
    },

    async getArtifactUpload(request, ctx) {
      return uploadMessage(await findUpload(deps, callOf(ctx), request.id));
    },

    async completeArtifactUpload(request, ctx) {
      return artifactMessage(await finishUpload(deps, callOf(ctx), request.id));
    },

    async getArtifact(request, ctx) {
      const { orgId } = callOf(ctx);
      return artifactMessage(await database.read(orgId, (tx) => getArtifact(tx, orgId, request.id)));
    },

    appendArtifactUpload: httpOnly,
    downloadArtifact: httpOnly,
  };
}

/** An artifact in the form of the contract. */
export function artifactMessage(row: Omit<ArtifactRow, "touch_time">): Artifact {
  return create(ArtifactSchema, {
    id: row.id,
    orgId: row.org_id,
    sha256: row.sha256.toString("hex"),
    sizeBytes: row.size_bytes,
    createTime: timestampFromDate(row.create_time),
  });
}

function uploadMessage({ upload, artifact }: UploadView): ArtifactUpload {
  return create(ArtifactUploadSchema, {
    id: upload.id,
    sha256: upload.sha256.toString("hex"),
    sizeBytes: upload.size_bytes,
    offset: upload.stored_bytes,
    ...(artifact === undefined ? {} : { artifact: artifactMessage(artifact) }),
    expireTime: timestampFromDate(upload.expire_time),
    maxChunkBytes: BigInt(maxChunkBytes),
  });
}

async function httpOnly(_request: unknown, _ctx: HandlerContext): Promise<never> {
  throw fail(Reason.NOT_IMPLEMENTED, "the method is served as plain HTTP at its REST path", {});
}

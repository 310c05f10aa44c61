import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { Call } from "@octomesh/mesh/call";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { HttpRequest, HttpResponse, HttpRoute } from "@octomesh/mesh/service";
import { ArtifactService } from "@octomesh/proto/octomesh/model/v1/artifact_service_pb";
import { type ByteRange, evaluatePreconditions, parseRange } from "../byte-range.ts";
import type { Dependencies } from "../dependencies.ts";
import { checkDownloadGrant, downloadGrantHeader } from "../download-grant.ts";
import { stillDelivers } from "../resolve.ts";
import { getArtifact } from "../store/artifacts.ts";

/**
 * `GET /api/v1/artifacts/{id}/content`: an artifact's bytes, whole or one range of them (RFC 9110 sections 13 and 14).
 *
 * A device shows the grant of its desired state, made for it and this artifact, and only while the rollout that gave it
 * still delivers to it; anyone else needs models:read, which policy has seen to. The transfer ends when the caller is
 * revoked or goes away.
 */
export function artifactDownloadRoute(deps: Dependencies): HttpRoute {
  return {
    method: ArtifactService.method.downloadArtifact,
    async handle(call, request, response, params) {
      const artifactId = params.id ?? "";
      if (call.caller.kind === "device") await assertAssigned(deps, call, request, artifactId);
      const { orgId } = call;
      const artifact = await deps.database.read(orgId, (tx) => getArtifact(tx, orgId, artifactId));
      const sha256 = artifact.sha256.toString("hex");
      const sizeBytes = Number(artifact.size_bytes);
      const etag = `"${sha256}"`;
      response.setHeader("etag", etag);
      response.setHeader("accept-ranges", "bytes");
      // Only this caller may keep the bytes, and nobody on the way may change them.
      response.setHeader("cache-control", "private, no-transform");

      const precondition = evaluatePreconditions(conditionsOf(request), etag);
      if (precondition === "failed") {
        throw fail(Reason.ETAG_MISMATCH, "the artifact has another digest than If-Match says", { sha256 });
      }
      if (precondition === "not_modified") {
        finish(response, 304);
        return;
      }
      const isHead = request.method === "HEAD";
      const asked =
        isHead || precondition === "proceed_without_range"
          ? ({ kind: "whole" } as const)
          : parseRange(headerOf(request, "range"), sizeBytes);
      if (asked.kind === "unsatisfiable") {
        response.setHeader("content-range", `bytes */${sizeBytes}`);
        const metadata = { size_bytes: String(sizeBytes) };
        throw fail(Reason.RANGE_NOT_SATISFIABLE, `the artifact has ${sizeBytes} bytes`, metadata);
      }
      const range: ByteRange = asked.kind === "part" ? asked.range : { first: 0, last: sizeBytes - 1 };
      const body = isHead ? undefined : await deps.blobs.open({ orgId, sha256 }, range);
      if (!isHead && body === undefined) throw new Error(`artifact ${artifactId} has no bytes in the blob store`);

      response.setHeader("content-type", "application/octet-stream");
      response.setHeader("content-disposition", `attachment; filename="${artifactId}"`);
      response.setHeader("content-length", String(range.last - range.first + 1));
      // RFC 9530: Repr-Digest is of the whole artifact, also beside a part of it; Content-Digest of what is sent.
      const digest = `sha-256=:${artifact.sha256.toString("base64")}:`;
      response.setHeader("repr-digest", digest);
      if (asked.kind === "part") response.setHeader("content-range", `bytes ${range.first}-${range.last}/${sizeBytes}`);
      else response.setHeader("content-digest", digest);
      if (body === undefined) {
        finish(response, 200);
        return;
      }
      response.statusCode = asked.kind === "part" ? 206 : 200;
      await send(body, response, call);
    },
  };
}

async function assertAssigned(deps: Dependencies, call: Call, request: HttpRequest, artifactId: string): Promise<void> {
  const deviceId = call.caller.id;
  const grant = checkDownloadGrant(deps.grantKey, headerOf(request, downloadGrantHeader), {
    orgId: call.orgId,
    deviceId,
    artifactId,
    nowMs: deps.clock.now(),
  });
  if (grant !== undefined) {
    const { index } = await deps.definitions.current(call.orgId);
    if (stillDelivers(index, grant.rolloutId, grant.versionId, deviceId)) return;
  }
  const message =
    "the artifact is not assigned to this device, or its download grant has lapsed: read the desired state";
  throw fail(Reason.ARTIFACT_NOT_ASSIGNED, message, { id: artifactId });
}

/** Sends at the receiver's pace. A caller that goes away, or is sent away, is no fault. */
async function send(body: Readable, response: HttpResponse, call: Call): Promise<void> {
  try {
    await pipeline(body, response as NodeJS.WritableStream, { signal: call.signal });
  } catch (error) {
    if (call.signal.aborted || response.destroyed) return;
    throw error;
  } finally {
    body.destroy();
  }
}

function finish(response: HttpResponse, status: number): void {
  response.statusCode = status;
  response.end();
}

function conditionsOf(request: HttpRequest) {
  return {
    "if-match": headerOf(request, "if-match"),
    "if-none-match": headerOf(request, "if-none-match"),
    "if-range": headerOf(request, "if-range"),
  };
}

function headerOf(request: HttpRequest, name: string): string | undefined {
  const value = request.headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
}

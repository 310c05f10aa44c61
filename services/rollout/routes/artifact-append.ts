import { ConnectError } from "@connectrpc/connect";
import { fail, Reason, reasonOf } from "@octomesh/mesh/errors";
import type { HttpRequest, HttpResponse, HttpRoute } from "@octomesh/mesh/service";
import { ErrorInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import { ArtifactService } from "@octomesh/proto/octomesh/model/v1/artifact_service_pb";
import { appendChunk, maxChunkBytes } from "../artifact-uploads.ts";
import { createChunkMemory } from "../chunk-memory.ts";
import type { Dependencies } from "../dependencies.ts";

/** How much of chunks under way may be held in memory at once, in all and for one organisation. */
const memoryLimits = { totalBytes: 8 * maxChunkBytes, organizationBytes: 2 * maxChunkBytes };
/** How long a sender may be silent in the middle of a chunk. */
const idleTimeoutMs = 30_000;
/** How long a chunk may take in all: who is slower sends smaller ones. */
const chunkTimeoutMs = 120_000;

/**
 * `PATCH /api/v1/artifact-uploads/{id}`: one chunk of an upload, by the header `Upload-Offset` and a body of
 * `application/offset+octet-stream` up to 8 MiB. Answers 204 and the new `Upload-Offset` once the chunk is durable; 409
 * and the right `Upload-Offset` where it differs.
 */
export function artifactAppendRoute(deps: Dependencies): HttpRoute {
  const memory = createChunkMemory(memoryLimits);
  return {
    method: ArtifactService.method.appendArtifactUpload,
    async handle(call, request, response, params) {
      const offset = offsetOf(request);
      const announced = lengthOf(request);
      const release = memory.reserve(call.orgId, announced ?? maxChunkBytes);
      try {
        const bytes = await readChunk(request, announced, call.signal);
        const upload = await appendChunk(deps, call, params.id ?? "", offset, bytes);
        response.setHeader("upload-offset", String(upload.stored_bytes));
        response.statusCode = 204;
        response.end();
      } catch (error) {
        sayOffset(error, response);
        throw error;
      } finally {
        release();
      }
    },
  };
}

function sayOffset(error: unknown, response: HttpResponse): void {
  if (!(error instanceof ConnectError)) return;
  const reason = reasonOf(error);
  const offset = reason === Reason.DIGEST_MISMATCH ? "0" : error.findDetails(ErrorInfoSchema)[0]?.metadata.offset;
  if (offset !== undefined && !response.headersSent) response.setHeader("upload-offset", offset);
}

function offsetOf(request: HttpRequest): number {
  const type = request.headers["content-type"]?.split(";")[0]?.trim().toLowerCase();
  if (type !== "application/offset+octet-stream") {
    const message = "a chunk's content-type is application/offset+octet-stream";
    throw fail(Reason.REQUEST_MALFORMED, message, { header: "content-type" });
  }
  const encoding = request.headers["content-encoding"];
  if (encoding !== undefined && encoding !== "identity") {
    throw fail(Reason.REQUEST_MALFORMED, "a chunk is sent as it is, not compressed", { header: "content-encoding" });
  }
  const text = request.headers["upload-offset"];
  if (typeof text !== "string" || !/^\d{1,15}$/.test(text)) {
    const message = "a chunk needs the header Upload-Offset, the number of bytes that are stored before it";
    throw fail(Reason.REQUEST_MALFORMED, message, { header: "upload-offset" });
  }
  return Number(text);
}

function lengthOf(request: HttpRequest): number | undefined {
  const text = request.headers["content-length"];
  if (text === undefined) return undefined;
  const length = Number(text);
  if (!Number.isSafeInteger(length) || length < 0) {
    throw fail(Reason.REQUEST_MALFORMED, "the Content-Length is no length", { header: "content-length" });
  }
  if (length > maxChunkBytes) throw tooLarge();
  return length;
}

/** Reads a whole chunk or nothing: what a broken connection cut off is sent again. */
async function readChunk(request: HttpRequest, announced: number | undefined, signal: AbortSignal): Promise<Buffer> {
  const parts: Buffer[] = [];
  let length = 0;
  let timer: NodeJS.Timeout | undefined;
  let isLate = false;
  const giveUp = () => {
    isLate = true;
    request.destroy();
  };
  const watch = () => {
    clearTimeout(timer);
    timer = setTimeout(giveUp, idleTimeoutMs);
  };
  const deadline = setTimeout(giveUp, chunkTimeoutMs);
  const stop = () => request.destroy();
  signal.addEventListener("abort", stop, { once: true });
  watch();
  try {
    // A body that is too large is answered, not broken off.
    for await (const part of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      watch();
      length += part.length;
      if (length > maxChunkBytes) throw tooLarge();
      parts.push(part);
    }
  } catch (error) {
    if (isLate) {
      const message = "the chunk did not arrive in time: send it again, or smaller ones";
      throw fail(Reason.DEADLINE_EXCEEDED, message, {}, { cause: error });
    }
    if (error instanceof ConnectError) throw error;
    throw fail(Reason.CANCELLED, "the chunk was cut off: send it again", {}, { cause: error });
  } finally {
    clearTimeout(timer);
    clearTimeout(deadline);
    signal.removeEventListener("abort", stop);
  }
  signal.throwIfAborted();
  if (announced !== undefined && length !== announced) {
    throw fail(Reason.CANCELLED, "the chunk was cut off: send it again", { received: String(length) });
  }
  return Buffer.concat(parts, length);
}

function tooLarge() {
  const metadata = { max_chunk_bytes: String(maxChunkBytes) };
  return fail(Reason.REQUEST_TOO_LARGE, `a chunk has at most ${maxChunkBytes} bytes`, metadata);
}

import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Artifact, ArtifactSchema, ArtifactUploadSchema } from "@octomesh/proto/octomesh/model/v1/artifact_pb";
import type { Clients } from "@octomesh/sdk";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { CommandError } from "./command-error.ts";
import { exitCode } from "./exit-code.ts";
import { digestFile, type UploadFile, uploadArtifact } from "./upload.ts";

const uploadId = `upl_${"a".repeat(26)}`;
const maxChunkBytes = 8 * 1024;

/** A service that takes uploads as the contract says, and misbehaves where it is told to. */
interface UploadService {
  url: string;
  clients: Pick<Clients, "artifacts" | "authorization">;
  /** What is stored. */
  stored: Buffer;
  /** Every offset that a chunk came with. */
  offsets: number[];
  /** Every `Authorization` that a chunk came with. */
  authorizations: (string | undefined)[];
  /** Answers in place of the service while it returns true. */
  interfere: (request: IncomingMessage, response: ServerResponse, body: Buffer) => boolean;
  close(): Promise<void>;
}

let folder: string;
let file: UploadFile;
let bytes: Buffer;
let service: UploadService;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "octomil-upload-"));
  bytes = randomBytes(50_000);
  await writeFile(join(folder, "model.onnx"), bytes);
  file = await digestFile(join(folder, "model.onnx"));
  service = await startService();
});

afterEach(async () => {
  await service.close();
  await rm(folder, { recursive: true, force: true });
});

const upload = (more: Partial<Parameters<typeof uploadArtifact>[0]> = {}) =>
  uploadArtifact({ url: service.url, clients: service.clients, file, sleep: async () => {}, ...more });

describe("digestFile", () => {
  test("measures and digests", () => {
    expect(file.sizeBytes).toBe(50_000);
    expect(file.sha256).toBe(createHash("sha256").update(bytes).digest("hex"));
  });

  test("refuses what is no file, or an empty one, as a usage error", async () => {
    await writeFile(join(folder, "empty"), "");
    await expect(digestFile(join(folder, "empty"))).rejects.toMatchObject({ code: exitCode.usage });
    await expect(digestFile(folder)).rejects.toMatchObject({ code: exitCode.usage });
    await expect(digestFile(join(folder, "absent"))).rejects.toMatchObject({ code: exitCode.usage });
  });
});

describe("uploadArtifact", () => {
  test("sends the file in chunks no larger than the service takes, each with its offset and the credential", async () => {
    const progress: number[] = [];
    const artifact = await upload({ onProgress: (stored) => progress.push(stored) });
    expect(artifact.sha256).toBe(file.sha256);
    expect(service.stored.equals(bytes)).toBe(true);
    expect(service.offsets).toEqual([0, 8192, 16_384, 24_576, 32_768, 40_960, 49_152]);
    expect(new Set(service.authorizations)).toEqual(new Set(["Bearer edg_live_test"]));
    expect(progress).toEqual([0, 8192, 16_384, 24_576, 32_768, 40_960, 49_152, 50_000]);
  });

  test("goes on where an earlier upload stopped", async () => {
    service.stored = bytes.subarray(0, 20_000);
    await upload();
    expect(service.offsets[0]).toBe(20_000);
    expect(service.stored.equals(bytes)).toBe(true);
  });

  test("sends nothing where the bytes are there already", async () => {
    await upload();
    service.offsets.length = 0;
    const again = await upload();
    expect(again.sha256).toBe(file.sha256);
    expect(service.offsets).toEqual([]);
  });

  test("survives a connection that is cut within a chunk", async () => {
    let cuts = 0;
    service.interfere = (request, _response, body) => {
      if (request.headers["upload-offset"] !== "16384" || cuts === 2) return false;
      cuts += 1;
      // Half of the chunk is stored, and the answer never arrives.
      if (cuts === 1) service.stored = Buffer.concat([service.stored, body.subarray(0, 4096)]);
      request.socket.destroy();
      return true;
    };
    const interruptions: string[] = [];
    await upload({ onInterruption: (why) => interruptions.push(why) });
    expect(service.stored.equals(bytes)).toBe(true);
    expect(interruptions).toHaveLength(1);
    expect(service.offsets).toContain(20_480);
  });

  test("takes the offset that the service says where it differs", async () => {
    service.interfere = (request) => {
      // An answer was lost: the service stands further on than the command thinks.
      if (request.headers["upload-offset"] === "8192" && service.stored.length === 8192) {
        service.stored = bytes.subarray(0, 16_384);
      }
      return false;
    };
    await upload();
    expect(service.stored.equals(bytes)).toBe(true);
    expect(service.offsets.slice(0, 3)).toEqual([0, 8192, 16_384]);
  });

  test("honours Retry-After when the service is full", async () => {
    let refusals = 2;
    service.interfere = (_request, response) => {
      if (refusals === 0) return false;
      refusals -= 1;
      response.writeHead(429, { "retry-after": "7", "content-type": "application/problem+json" });
      response.end(JSON.stringify({ status: 429, detail: "too many calls", code: "RATE_LIMITED" }));
      return true;
    };
    const waits: number[] = [];
    await upload({
      sleep: async (ms) => {
        waits.push(ms);
      },
    });
    expect(waits).toEqual([7000, 7000]);
    expect(service.stored.equals(bytes)).toBe(true);
  });

  test.each([
    [401, exitCode.unauthenticated],
    [403, exitCode.failed],
    [404, exitCode.notFound],
    [507, exitCode.failed],
  ])("gives up at once on %i, with what the service said", async (status, code) => {
    service.interfere = (_request, response) => {
      response.writeHead(status, { "content-type": "application/problem+json" });
      response.end(JSON.stringify({ status, detail: "it is not to be", code: "SCOPE_MISSING" }));
      return true;
    };
    const error = await upload().then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    expect(error).toBeInstanceOf(CommandError);
    expect(error).toMatchObject({ code, message: "it is not to be (SCOPE_MISSING)" });
    expect(service.offsets).toHaveLength(1);
  });

  test("ends with exit code 5 when nothing advances", async () => {
    service.interfere = (_request, response) => {
      response.writeHead(503);
      response.end();
      return true;
    };
    await expect(upload({ maxFailures: 3 })).rejects.toMatchObject({ code: exitCode.unavailable });
    expect(service.offsets).toHaveLength(4);
  });

  test("passes on that the digest does not match", async () => {
    const wrong = { ...file, sha256: "0".repeat(64) };
    await expect(upload({ file: wrong })).rejects.toMatchObject({ code: Code.InvalidArgument });
  });

  test("stops between chunks when it is told to, and continues later", async () => {
    const controller = new AbortController();
    await expect(
      upload({
        signal: controller.signal,
        onProgress: (stored) => {
          if (stored >= 16_384) controller.abort(new Error("interrupted"));
        },
      }),
    ).rejects.toThrow("interrupted");
    expect(service.stored.length).toBe(16_384);
    await upload();
    expect(service.stored.equals(bytes)).toBe(true);
    expect(service.offsets.filter((offset) => offset === 0)).toHaveLength(1);
  });
});

async function startService(): Promise<UploadService> {
  const state = { sha256: "", sizeBytes: 0, artifact: undefined as Artifact | undefined };
  const server: Server = createServer((request, response) => {
    const pieces: Buffer[] = [];
    request.on("data", (piece: Buffer) => pieces.push(piece));
    request.on("end", () => {
      const body = Buffer.concat(pieces);
      const offset = Number(request.headers["upload-offset"]);
      started.offsets.push(offset);
      started.authorizations.push(request.headers.authorization);
      if (started.interfere(request, response, body)) return;
      const isChunk =
        request.method === "PATCH" &&
        request.url === `/api/v1/artifact-uploads/${uploadId}` &&
        request.headers["content-type"] === "application/offset+octet-stream" &&
        body.length <= maxChunkBytes;
      if (!isChunk) {
        response.writeHead(400).end();
        return;
      }
      if (offset !== started.stored.length) {
        response.writeHead(409, { "upload-offset": String(started.stored.length) }).end();
        return;
      }
      started.stored = Buffer.concat([started.stored, body]);
      response.writeHead(204, { "upload-offset": String(started.stored.length) }).end();
    });
    request.on("error", () => {});
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));

  const describe = () =>
    create(ArtifactUploadSchema, {
      id: uploadId,
      sha256: state.sha256,
      sizeBytes: BigInt(state.sizeBytes),
      offset: BigInt(started.stored.length),
      artifact: state.artifact,
      maxChunkBytes: BigInt(maxChunkBytes),
    });
  const artifacts = {
    async createArtifactUpload(request: { sha256?: string; sizeBytes?: bigint }) {
      state.sha256 = request.sha256 ?? "";
      state.sizeBytes = Number(request.sizeBytes);
      return describe();
    },
    async completeArtifactUpload() {
      const found = createHash("sha256").update(started.stored).digest("hex");
      if (found !== state.sha256) throw new ConnectError("the bytes have another digest", Code.InvalidArgument);
      state.artifact = create(ArtifactSchema, {
        id: `art_${"a".repeat(26)}`,
        sha256: found,
        sizeBytes: BigInt(started.stored.length),
      });
      return state.artifact;
    },
  };
  const started: UploadService = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    clients: {
      artifacts: artifacts as unknown as Clients["artifacts"],
      authorization: async () => "Bearer edg_live_test",
    },
    stored: Buffer.alloc(0),
    offsets: [],
    authorizations: [],
    interfere: () => false,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  return started;
}

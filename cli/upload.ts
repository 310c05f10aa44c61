import { createHash } from "node:crypto";
import type { Stats } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { Artifact, ArtifactUpload } from "@octomesh/proto/octomesh/model/v1/artifact_pb";
import type { Clients } from "@octomesh/sdk";
import { CommandError, usageError } from "./command-error.ts";
import { type ExitCode, exitCode } from "./exit-code.ts";

/** A file whose digest is known. */
export interface UploadFile {
  path: string;
  /** How many bytes it holds: at least one. */
  sizeBytes: number;
  /** SHA-256 of its bytes, lower-case hexadecimal. */
  sha256: string;
}

/** What an upload needs. */
export interface UploadOptions {
  /** Public origin of the mesh. */
  url: string;
  /** Clients of the mesh, whose credential the chunks carry too. */
  clients: Pick<Clients, "artifacts" | "authorization">;
  file: UploadFile;
  /** Bytes of a chunk; by default about a 64th of the file, from 256 KiB to 4 MiB, and never more than the mesh takes. */
  chunkBytes?: number;
  /** Told how many bytes are stored at the mesh. */
  onProgress?(storedBytes: number): void;
  /** Told why the upload is being continued after a failure. */
  onInterruption?(why: string): void;
  /** Ends the upload; the same command goes on from there later. */
  signal?: AbortSignal;
  /** How often in a row an upload may fail to advance. Default 8. */
  maxFailures?: number;
  /** Makes HTTP requests. */
  fetch?: typeof globalThis.fetch;
  /** Waits. */
  sleep?(ms: number): Promise<unknown>;
}

const kibibyte = 1024;
const minChunkBytes = 256 * kibibyte;
const maxChunkBytes = 4 * kibibyte * kibibyte;

/** Checks that a path is a file with something in it. Throws a usage error that says what it is instead. */
export async function checkFile(path: string): Promise<void> {
  try {
    checkStats(path, await stat(path));
  } catch (cause) {
    throw cause instanceof CommandError ? cause : unreadable(path, cause);
  }
}

/** Measures a file and computes its SHA-256 digest. Throws a usage error for what is no readable file, or is empty. */
export async function digestFile(
  path: string,
  onProgress: (readBytes: number, sizeBytes: number) => void = () => {},
  signal?: AbortSignal,
): Promise<UploadFile> {
  const handle = await openFile(path);
  try {
    const stats = await handle.stat();
    checkStats(path, stats);
    const hash = createHash("sha256");
    let read = 0;
    for await (const piece of handle.createReadStream({ autoClose: false, highWaterMark: 1024 * kibibyte, signal })) {
      hash.update(piece as Buffer);
      read += (piece as Buffer).length;
      onProgress(read, stats.size);
    }
    return { path, sizeBytes: read, sha256: hash.digest("hex") };
  } finally {
    await handle.close();
  }
}

/**
 * Uploads a file by the contract's resumable upload (octomesh.model.v1.ArtifactService): chunks by HTTP PATCH, each with
 * its offset, and the digest checked by the mesh at the end. Bytes that the organisation has already are not sent.
 *
 * A lost connection, a full service or a wrong offset is survived: the upload asks where to go on and goes on, with
 * growing waits, and honours Retry-After. Calling it again with the same file, in this process or another, continues
 * what an earlier call began.
 */
export async function uploadArtifact(options: UploadOptions): Promise<Artifact> {
  const { file, clients, signal } = options;
  const sleep = options.sleep ?? ((ms: number) => delay(ms, undefined, { signal }));
  const handle = await openFile(file.path);
  try {
    let upload = await begin(options);
    if (upload.artifact !== undefined) {
      options.onProgress?.(file.sizeBytes);
      return upload.artifact;
    }
    let offset = Number(upload.offset);
    let failures = 0;
    options.onProgress?.(offset);
    while (offset < file.sizeBytes) {
      signal?.throwIfAborted();
      const chunk = await readChunk(handle, offset, chunkSize(options, upload));
      const outcome = await sendChunk(options, upload.id, offset, chunk);
      if (outcome.kind === "stored" && outcome.offset > offset) {
        offset = outcome.offset;
        failures = 0;
        options.onProgress?.(offset);
        continue;
      }
      if (outcome.kind === "refused") throw outcome.error;
      failures += 1;
      if (failures > (options.maxFailures ?? 8)) {
        throw new CommandError(`the upload does not advance: ${outcome.why}`, {
          code: exitCode.unavailable,
          hint: "Run the same command again: it goes on where it stopped.",
        });
      }
      if (outcome.kind === "stored" || outcome.kind === "moved") {
        // The mesh stands elsewhere than we thought: an answer was lost, or another process uploads the same file.
        offset = outcome.offset;
      } else {
        options.onInterruption?.(outcome.why);
        await sleep(outcome.retryAfterMs ?? backoffMs(failures));
        upload = await begin(options);
        if (upload.artifact !== undefined) break;
        offset = Number(upload.offset);
      }
      options.onProgress?.(offset);
    }
    return upload.artifact ?? (await clients.artifacts.completeArtifactUpload({ id: upload.id }, { signal }));
  } finally {
    await handle.close();
  }
}

type Outcome =
  | { kind: "stored"; offset: number; why: string }
  | { kind: "moved"; offset: number; why: string }
  | { kind: "failed"; why: string; retryAfterMs?: number }
  | { kind: "refused"; error: CommandError };

async function sendChunk(
  options: UploadOptions,
  id: string,
  offset: number,
  chunk: Uint8Array<ArrayBuffer>,
): Promise<Outcome> {
  const fetch = options.fetch ?? globalThis.fetch;
  const timeout = AbortSignal.timeout(120_000);
  let response: Response;
  try {
    const authorization = await options.clients.authorization();
    response = await fetch(`${options.url}/api/v1/artifact-uploads/${id}`, {
      method: "PATCH",
      headers: {
        ...(authorization === undefined ? {} : { authorization }),
        "content-type": "application/offset+octet-stream",
        "upload-offset": String(offset),
      },
      body: chunk,
      redirect: "error",
      signal: options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]),
    });
  } catch (error) {
    if (options.signal?.aborted === true) throw options.signal.reason;
    return { kind: "failed", why: messageOf(error) };
  }
  const text = await response.text().catch(() => "");
  const stored = parseOffset(response.headers.get("upload-offset"), options.file.sizeBytes);
  if (response.status === 204 || response.status === 200) {
    return { kind: "stored", offset: stored ?? offset + chunk.length, why: "the mesh stored nothing" };
  }
  const problem = parseProblem(text);
  const why = problem.detail === "" ? `HTTP ${response.status}` : problem.detail;
  if (response.status === 409 && stored !== undefined) return { kind: "moved", offset: stored, why };
  // 507: the mesh has no room, and will not have any in a moment.
  const passing = response.status === 409 || response.status === 429 || response.status >= 500;
  if (passing && response.status !== 507) {
    return { kind: "failed", why, retryAfterMs: parseRetryAfter(response.headers.get("retry-after")) };
  }
  return {
    kind: "refused",
    error: new CommandError(withReason(why, problem.reason), { code: codeOf(response.status) }),
  };
}

async function begin(options: UploadOptions): Promise<ArtifactUpload> {
  const { file } = options;
  return options.clients.artifacts.createArtifactUpload(
    { sha256: file.sha256, sizeBytes: BigInt(file.sizeBytes) },
    { signal: options.signal },
  );
}

function chunkSize(options: UploadOptions, upload: ArtifactUpload): number {
  const share = Math.ceil(options.file.sizeBytes / 64 / kibibyte) * kibibyte;
  const wanted = options.chunkBytes ?? Math.min(maxChunkBytes, Math.max(minChunkBytes, share));
  const allowed = Number(upload.maxChunkBytes);
  return allowed > 0 ? Math.min(wanted, allowed) : wanted;
}

async function readChunk(handle: FileHandle, offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(length);
  let filled = 0;
  while (filled < length) {
    const { bytesRead } = await handle.read(bytes, filled, length - filled, offset + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  if (filled === 0) throw new CommandError("the file became shorter while it was sent", { hint: "Push it again." });
  return bytes.subarray(0, filled);
}

async function openFile(path: string): Promise<FileHandle> {
  try {
    return await open(path, "r");
  } catch (cause) {
    throw unreadable(path, cause);
  }
}

function checkStats(path: string, stats: Stats): void {
  if (!stats.isFile()) {
    throw usageError(`not a file: ${path}${stats.isDirectory() ? " is a directory" : ""}`);
  }
  if (stats.size === 0) throw usageError(`the file is empty: ${path}`);
}

function unreadable(path: string, cause: unknown): CommandError {
  const { code } = cause as { code?: unknown };
  const isMissing = code === "ENOENT" || code === "ENOTDIR";
  const message = isMissing ? `no such file: ${path}` : `cannot read ${path}: ${messageOf(cause)}`;
  return new CommandError(message, { code: exitCode.usage, cause });
}

function parseOffset(text: string | null, sizeBytes: number): number | undefined {
  if (text === null || !/^\d{1,15}$/.test(text)) return undefined;
  const offset = Number(text);
  return offset <= sizeBytes ? offset : undefined;
}

// RFC 9110 section 10.2.3: seconds, or a date.
function parseRetryAfter(text: string | null): number | undefined {
  if (text === null) return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text) * 1000;
  const date = Date.parse(text);
  return Number.isNaN(date) ? undefined : Math.max(0, date - Date.now());
}

function parseProblem(text: string): { detail: string; reason: string } {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== "object" || value === null) return { detail: "", reason: "" };
    const { detail, code, title } = value as { detail?: unknown; code?: unknown; title?: unknown };
    const said = typeof detail === "string" ? detail : typeof title === "string" ? title : "";
    return { detail: said.slice(0, 500), reason: typeof code === "string" ? code : "" };
  } catch {
    return { detail: "", reason: "" };
  }
}

function withReason(message: string, reason: string): string {
  return reason === "" ? message : `${message} (${reason})`;
}

function codeOf(status: number): ExitCode {
  if (status === 401) return exitCode.unauthenticated;
  if (status === 404) return exitCode.notFound;
  return exitCode.failed;
}

function backoffMs(failures: number): number {
  return Math.min(10_000, 200 * 2 ** (failures - 1)) * (0.5 + Math.random() / 2);
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error && error.cause.message !== "" ? error.cause.message : error.message;
}

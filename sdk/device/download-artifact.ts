import { type BackoffOptions, backoffMs } from "../backoff.ts";
import type { HttpClient, HttpResponse, Platform } from "../platform/platform.ts";
import { wait } from "../wait.ts";
import type { ArtifactStore } from "./artifact-store.ts";
import { toHex } from "./bytes.ts";
import { DeviceError, isDeviceError } from "./device-error.ts";
import { downloadStep, rangeHeaders } from "./download-step.ts";

/** What a download needs. */
export interface DownloadOptions {
  /** SHA-256 that the manifest signs, 64 lower-case hexadecimal digits. */
  sha256: string;
  /** Size that the manifest signs, in bytes. */
  sizeBytes: number;
  /** Where the bytes end up. */
  store: ArtifactStore;
  /** Makes the requests. */
  http: HttpClient;
  /** Computes the digest. */
  sha256Of: Platform<unknown>["sha256"];
  /**
   * Where to ask and with which headers (credential and download grant). `refused` is the status that the last ones were
   * refused with, if they were: then they must be new.
   */
  source(refused?: number): Promise<{ url: string; headers: Record<string, string> }>;
  /** Ends the download; what there is stays for the next one. */
  signal: AbortSignal;
  /** Told once before the first byte: where it continues. */
  onStart?(offset: number): void;
  /** Told as bytes come. */
  onProgress?(offset: number): void;
  /** Told when the server asks to wait. */
  onThrottled?(retryAfterMs: number): void;
  /** How many requests in a row may bring nothing before the download fails. Default 5. */
  maxFruitlessAttempts?: number;
  /** How many bytes may come before they are made to survive a crash. Default 8 MiB. */
  checkpointBytes?: number;
  /** How attempts are spaced. */
  backoff?: BackoffOptions;
  /** Waits; rejects when the signal aborts. */
  sleep?: (ms: number, signal?: AbortSignal) => Promise<void>;
}

/** What a download took. */
export interface DownloadOutcome {
  /** Bytes that came over the network. */
  receivedBytes: number;
  /** Whether it continued one that had been cut, in this call or before it. */
  resumed: boolean;
}

/**
 * Downloads an artifact into the store, and resolves when it is complete: every byte there, of the signed size and
 * digest. A cut download continues where it was, within this call and by the next one. The digest is computed as the
 * bytes come; bytes of the wrong digest never become a complete artifact. If what does not match had been continued from
 * an earlier piece, the whole is fetched once more, because the piece may be at fault.
 *
 * Throws a DeviceError: ARTIFACT_SIZE, ARTIFACT_DIGEST (both: dropped), STORAGE, DOWNLOAD (kept for the next attempt);
 * or the signal's reason.
 */
export async function downloadArtifact(options: DownloadOptions): Promise<DownloadOutcome> {
  const { sha256, sizeBytes, store, signal } = options;
  const maxFruitless = options.maxFruitlessAttempts ?? 5;
  const checkpointBytes = options.checkpointBytes ?? 8 * 1024 ** 2;
  const sleep = options.sleep ?? wait;
  const partial = await store.openPartial(sha256);
  let digest = options.sha256Of();
  let receivedBytes = 0;
  let resumed = partial.offset > 0;
  let isFromOnePiece = partial.offset === 0;
  let hasRefetched = false;
  let isClosed = false;

  async function restart(etag: string | undefined) {
    await partial.restart(etag);
    digest = options.sha256Of();
    isFromOnePiece = true;
  }

  async function take(response: HttpResponse) {
    let sinceCheckpoint = 0;
    try {
      for await (const bytes of response.body) {
        if (partial.offset + bytes.length > sizeBytes) {
          throw new DeviceError("ARTIFACT_SIZE", `the artifact has more than the ${sizeBytes} bytes that are signed`);
        }
        await partial.append(bytes);
        digest.update(bytes);
        receivedBytes += bytes.length;
        sinceCheckpoint += bytes.length;
        if (sinceCheckpoint >= checkpointBytes) {
          await partial.checkpoint();
          sinceCheckpoint = 0;
        }
        options.onProgress?.(partial.offset);
      }
    } finally {
      if (sinceCheckpoint > 0) await partial.checkpoint();
    }
  }

  try {
    if (partial.offset > sizeBytes) await restart(undefined);
    for await (const bytes of partial.read()) digest.update(bytes);
    options.onStart?.(partial.offset);
    let refused: number | undefined;
    let hasRenewed = false;
    for (let fruitless = 0; ; ) {
      signal.throwIfAborted();
      if (partial.offset === sizeBytes) {
        const found = toHex(await digest.digest());
        if (found === sha256) {
          await partial.complete();
          isClosed = true;
          return { receivedBytes, resumed };
        }
        const mayBeThePiece = !isFromOnePiece && !hasRefetched;
        hasRefetched = true;
        await restart(undefined);
        if (mayBeThePiece) continue;
        throw new DeviceError("ARTIFACT_DIGEST", `the artifact's digest is ${found}, signed is ${sha256}`);
      }
      const before = receivedBytes;
      let failure: unknown;
      let pauseMs: number | undefined;
      try {
        const { url, headers } = await options.source(refused);
        refused = undefined;
        const request = { ...headers, "accept-encoding": "identity", ...rangeHeaders(partial) };
        const response = await options.http({ url, headers: request, signal });
        const step = downloadStep(response, partial, sizeBytes);
        if (step.kind === "append") {
          resumed = true;
          isFromOnePiece = false;
          await take(response);
        } else if (step.kind === "restart") {
          await restart(step.etag);
          await take(response);
        } else {
          await drop(response);
          if (step.kind === "wrong-size") {
            throw new DeviceError("ARTIFACT_SIZE", `the artifact has ${step.sizeBytes} bytes, signed are ${sizeBytes}`);
          }
          if (step.kind === "discard") await restart(undefined);
          if (step.kind === "wait") {
            pauseMs = step.ms;
            options.onThrottled?.(step.ms);
          }
          if (step.kind === "renew") {
            refused = step.status;
            if (hasRenewed) throw refusal(step.status);
            hasRenewed = true;
            pauseMs = 0;
          }
          if (step.kind === "fail") throw refusal(step.status);
          failure = "status" in step ? refusal(step.status) : undefined;
        }
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        if (isDeviceError(error)) {
          if (error.kind === "ARTIFACT_SIZE") await partial.restart(undefined);
          throw error;
        }
        failure = error;
      }
      if (receivedBytes > before) {
        fruitless = 0;
        hasRenewed = false;
        continue;
      }
      fruitless++;
      if (fruitless >= maxFruitless) {
        throw isDeviceError(failure)
          ? failure
          : new DeviceError("DOWNLOAD", `the artifact could not be fetched in ${fruitless} attempts`, {
              cause: failure,
            });
      }
      await sleep(pauseMs ?? backoffMs(fruitless, options.backoff), signal);
    }
  } finally {
    if (!isClosed) await partial.close();
  }
}

/** Whether a complete artifact of the store still has its digest: disks forget, and files can be changed. */
export async function isIntact(
  store: ArtifactStore,
  sha256: string,
  sizeBytes: number,
  sha256Of: Platform<unknown>["sha256"],
): Promise<boolean> {
  if ((await store.sizeOf(sha256)) !== sizeBytes) return false;
  const digest = sha256Of();
  for await (const bytes of store.read(sha256)) digest.update(bytes);
  return toHex(await digest.digest()) === sha256;
}

function refusal(status: number): DeviceError {
  return new DeviceError("DOWNLOAD", `the mesh answered ${status} to the download`);
}

async function drop(response: HttpResponse): Promise<void> {
  // Leaving the loop closes the body; a lost connection is of no interest any more.
  try {
    for await (const _ of response.body) break;
  } catch {}
}

import { DeviceError } from "./device-error.ts";
import { createMutex } from "./mutex.ts";
import {
  applyEntry,
  decodeLog,
  encodeEntries,
  encodeLog,
  entryOverhead,
  type SealedBatch,
  type TelemetryLogEntry,
  type TelemetryLogState,
} from "./telemetry-log.ts";
import type { TelemetryStorage } from "./telemetry-storage.ts";

/** Settings of a telemetry queue. */
export interface TelemetryQueueOptions {
  /** Where the log is kept. */
  storage: TelemetryStorage;
  /** Names this run of the program: batches are known by it and a sequence. */
  bootId: string;
  /** How many bytes of reports may wait, at least 64 KiB. Default 4 MiB. The log takes at most twice that and 64 KiB. */
  maxBytes?: number;
  /** Told when the oldest reports are dropped to make room. */
  onDropped?(count: number): void;
  /** How long an append may go without being synced, in milliseconds. Default 1,000. */
  syncMs?: number;
}

/** Reports that wait to be sent, at least once each, in order. */
export interface TelemetryQueue {
  /**
   * Takes reports, serialised. When it resolves they survive the end of the process, and within `syncMs` a power cut.
   * Drops the oldest where there is no room. Throws DeviceError STORAGE where they could not be written (a full disk): then
   * at least the last of them was not taken.
   */
  append(reports: readonly Uint8Array[]): Promise<void>;
  /**
   * The batch to send now; undefined where nothing waits. The same one, under the same name, until it is answered, after
   * a restart too: its name is durable before this resolves, so the mesh can tell when it comes twice.
   */
  next(): Promise<SealedBatch | undefined>;
  /** The batch was taken. */
  acknowledge(): Promise<void>;
  /**
   * The batch was refused for what it holds: its reports are tried again in smaller batches, and one that is refused by
   * itself is dropped. Answers how many were dropped.
   */
  refuse(): Promise<number>;
  /** What waits, in reports and bytes, and how many were dropped since the log began. */
  stats(): { queued: number; queuedBytes: number; dropped: number };
  /** Syncs and gives the log back. */
  close(): Promise<void>;
}

const maxReportBytes = 8 * 1024;
const maxBatchReports = 500;
const minBytes = 64 * 1024;

/** Opens a telemetry queue with what an earlier run left. A log that is cut short is read as far as it is whole. */
export async function openTelemetryQueue(options: TelemetryQueueOptions): Promise<TelemetryQueue> {
  const { storage, bootId } = options;
  const maxBytes = Math.max(minBytes, options.maxBytes ?? 4 * 1024 ** 2);
  const maxBatchBytes = Math.min(512 * 1024, Math.floor(maxBytes / 2));
  const inTurn = createMutex();
  const found = await storage.open();
  const { state, length } = decodeLog(found);
  let sequence = 0n;
  let batchLimit = maxBatchReports;
  let logBytes = length;
  let needsSync = false;
  let syncTimer: ReturnType<typeof setTimeout> | undefined;
  let isClosed = false;
  let pendingBytes = bytesOf(state.pending);
  let sealedBytes = bytesOf(state.sealed?.reports ?? []);

  if (length === 0) await rewrite();
  else if (length < found.length) await storage.truncate(length);
  await makeRoom(0);

  async function rewrite() {
    const whole = encodeLog(state);
    await storage.replace(whole);
    logBytes = whole.length;
    needsSync = false;
  }

  async function write(entries: readonly TelemetryLogEntry[]) {
    const bytes = encodeEntries(entries);
    await storage.append(bytes);
    logBytes += bytes.length;
    needsSync = true;
    for (const entry of entries) {
      applyEntry(state, entry);
      if (entry.kind === "report") {
        pendingBytes += sizeOf(entry.report);
      } else {
        pendingBytes = bytesOf(state.pending);
        sealedBytes = bytesOf(state.sealed?.reports ?? []);
      }
    }
    if (logBytes > 2 * (pendingBytes + sealedBytes) + minBytes) await rewrite();
  }

  async function sync() {
    if (!needsSync) return;
    await storage.sync();
    needsSync = false;
  }

  /** How many of the oldest reports must go so that `more` bytes fit. */
  function excess(more: number): number {
    let bytes = sealedBytes + pendingBytes + more;
    let count = 0;
    while (bytes > maxBytes && count < state.pending.length) bytes -= sizeOf(state.pending[count++] as Uint8Array);
    return count;
  }

  async function makeRoom(more: number) {
    const count = excess(more);
    if (count === 0) return;
    await write([{ kind: "drop", count }]);
    options.onDropped?.(count);
  }

  return {
    append: (reports) =>
      inTurn(async () => {
        if (isClosed) throw new DeviceError("CLOSED", "the telemetry queue is closed");
        for (const report of reports) {
          if (report.length > maxReportBytes) {
            throw new DeviceError("TELEMETRY_REFUSED", `a report has at most ${maxReportBytes} bytes`);
          }
        }
        // In pieces of which one always has room: the batch takes half of it at most, what waits can go.
        for (const piece of piecesOf(reports, Math.floor(maxBytes / 4))) {
          await makeRoom(bytesOf(piece));
          await write(piece.map((report) => ({ kind: "report", report })));
        }
        syncTimer ??= setTimeout(() => {
          syncTimer = undefined;
          inTurn(sync).catch(() => {});
        }, options.syncMs ?? 1_000);
      }),
    next: () =>
      inTurn(async () => {
        if (isClosed) return undefined;
        if (state.sealed === undefined) {
          const count = batchSize(state, batchLimit, maxBatchBytes);
          if (count === 0) return undefined;
          await write([{ kind: "seal", bootId, sequence, count }]);
          sequence++;
        }
        await sync();
        return state.sealed;
      }),
    acknowledge: () =>
      inTurn(async () => {
        if (state.sealed === undefined) return;
        await write([{ kind: "acknowledge" }]);
        batchLimit = Math.min(maxBatchReports, batchLimit * 2);
      }),
    refuse: () =>
      inTurn(async () => {
        const count = state.sealed?.reports.length ?? 0;
        if (count === 0) return 0;
        if (count > 1) {
          await write([{ kind: "unseal" }]);
          batchLimit = Math.ceil(count / 2);
          return 0;
        }
        await write([{ kind: "discard" }]);
        batchLimit = Math.min(maxBatchReports, batchLimit * 2);
        return 1;
      }),
    stats: () => ({
      queued: state.pending.length + (state.sealed?.reports.length ?? 0),
      queuedBytes: pendingBytes + sealedBytes,
      dropped: state.dropped,
    }),
    close: () =>
      inTurn(async () => {
        if (isClosed) return;
        isClosed = true;
        clearTimeout(syncTimer);
        await storage.close();
      }),
  };
}

function batchSize(state: TelemetryLogState, maxReports: number, maxBytes: number): number {
  let bytes = 0;
  let count = 0;
  for (const report of state.pending) {
    bytes += sizeOf(report);
    if (count >= maxReports || (count > 0 && bytes > maxBytes)) break;
    count++;
  }
  return count;
}

function piecesOf(reports: readonly Uint8Array[], maxBytes: number): Uint8Array[][] {
  const pieces: Uint8Array[][] = [];
  let bytes = 0;
  for (const report of reports) {
    bytes += sizeOf(report);
    if (pieces.length === 0 || bytes > maxBytes) {
      pieces.push([]);
      bytes = sizeOf(report);
    }
    pieces.at(-1)?.push(report);
  }
  return pieces;
}

function sizeOf(report: Uint8Array): number {
  return report.length + entryOverhead;
}

function bytesOf(reports: readonly Uint8Array[]): number {
  return reports.reduce((sum, report) => sum + sizeOf(report), 0);
}

/** What a telemetry log says: the batch that is on its way, what waits behind it, and what was lost. */
export interface TelemetryLogState {
  /** The batch that was given its place and must be sent as it is until it is answered. */
  sealed?: SealedBatch;
  /** Reports that wait, oldest first: serialised ReportTelemetryRequest.Report. */
  pending: Uint8Array[];
  /** Reports that were dropped for want of room. */
  dropped: number;
}

/** A batch of reports under the name by which the mesh recognises it if it comes again. */
export interface SealedBatch {
  /** The boot of the SDK that sealed it. */
  bootId: string;
  /** Its place among the batches of that boot. */
  sequence: bigint;
  /** The reports, oldest first. */
  reports: Uint8Array[];
}

/** One entry of the log. */
export type TelemetryLogEntry =
  /** A report joins the end of what waits. */
  | { kind: "report"; report: Uint8Array }
  /** The oldest `count` reports that wait become the batch. */
  | { kind: "seal"; bootId: string; sequence: bigint; count: number }
  /** The batch was answered: it is gone. */
  | { kind: "acknowledge" }
  /** The batch was refused as a whole: its reports wait again, in front. */
  | { kind: "unseal" }
  /** The oldest `count` reports that wait are lost. */
  | { kind: "drop"; count: number }
  /** As `acknowledge`, but its reports count as lost. */
  | { kind: "discard" }
  /** This many reports were lost before the log begins. */
  | { kind: "lost"; count: number };

/** First bytes of every log. */
export const logHeader = new TextEncoder().encode("OCTOTEL1");
/** Bytes that an entry takes beside its content. */
export const entryOverhead = 9;
/** Longest content of an entry, in bytes. */
export const maxEntryBytes = 64 * 1024;

const kinds = ["report", "seal", "acknowledge", "unseal", "drop", "discard", "lost"] as const;

/** The state of an empty log. */
export function emptyLogState(): TelemetryLogState {
  return { pending: [], dropped: 0 };
}

/**
 * Applies an entry to a state, in place. Answers false, and changes nothing, for an entry that cannot follow: sealing or
 * dropping more than waits, sealing twice, answering what is not sealed.
 */
export function applyEntry(state: TelemetryLogState, entry: TelemetryLogEntry): boolean {
  switch (entry.kind) {
    case "report":
      state.pending.push(entry.report);
      return true;
    case "seal":
      if (state.sealed !== undefined || entry.count < 1 || entry.count > state.pending.length) return false;
      state.sealed = {
        bootId: entry.bootId,
        sequence: entry.sequence,
        reports: state.pending.splice(0, entry.count),
      };
      return true;
    case "acknowledge":
      if (state.sealed === undefined) return false;
      state.sealed = undefined;
      return true;
    case "discard":
      if (state.sealed === undefined) return false;
      state.dropped += state.sealed.reports.length;
      state.sealed = undefined;
      return true;
    case "unseal":
      if (state.sealed === undefined) return false;
      state.pending.unshift(...state.sealed.reports);
      state.sealed = undefined;
      return true;
    case "drop":
      if (entry.count > state.pending.length) return false;
      state.pending.splice(0, entry.count);
      state.dropped += entry.count;
      return true;
    case "lost":
      state.dropped += entry.count;
      return true;
  }
}

/**
 * Writes entries as bytes. Each is: length of its content (4 bytes, little-endian), CRC-32 of kind and content (4 bytes,
 * little-endian), kind (1 byte), content.
 */
export function encodeEntries(entries: readonly TelemetryLogEntry[]): Uint8Array {
  const contents = entries.map(contentOf);
  const bytes = new Uint8Array(contents.reduce((sum, content) => sum + entryOverhead + content.length, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  entries.forEach((entry, index) => {
    const content = contents[index] as Uint8Array;
    if (content.length > maxEntryBytes) throw new RangeError(`a log entry has at most ${maxEntryBytes} bytes`);
    bytes[at + 8] = kinds.indexOf(entry.kind);
    bytes.set(content, at + entryOverhead);
    view.setUint32(at, content.length, true);
    view.setUint32(at + 4, crc32(bytes.subarray(at + 8, at + entryOverhead + content.length)), true);
    at += entryOverhead + content.length;
  });
  return bytes;
}

/** Writes a whole log that says what a state says, and no more. */
export function encodeLog(state: TelemetryLogState): Uint8Array {
  const { sealed, pending, dropped } = state;
  const entries: TelemetryLogEntry[] = [];
  if (dropped > 0) entries.push({ kind: "lost", count: dropped });
  if (sealed !== undefined) {
    for (const report of sealed.reports) entries.push({ kind: "report", report });
    entries.push({ kind: "seal", bootId: sealed.bootId, sequence: sealed.sequence, count: sealed.reports.length });
  }
  for (const report of pending) entries.push({ kind: "report", report });
  const body = encodeEntries(entries);
  const bytes = new Uint8Array(logHeader.length + body.length);
  bytes.set(logHeader);
  bytes.set(body, logHeader.length);
  return bytes;
}

/**
 * Reads a log as far as it is whole: up to the first entry that was not written to its end, whose checksum is wrong, or
 * that cannot follow. `length` is how many bytes were read that way, 0 where there is no log at all.
 */
export function decodeLog(bytes: Uint8Array): { state: TelemetryLogState; length: number } {
  const state = emptyLogState();
  if (!logHeader.every((byte, index) => bytes[index] === byte)) return { state, length: 0 };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = logHeader.length;
  while (at + entryOverhead <= bytes.length) {
    const size = view.getUint32(at, true);
    const end = at + entryOverhead + size;
    if (size > maxEntryBytes || end > bytes.length) break;
    if (crc32(bytes.subarray(at + 8, end)) !== view.getUint32(at + 4, true)) break;
    const entry = parseEntry(bytes[at + 8] as number, new Uint8Array(bytes.subarray(at + entryOverhead, end)));
    if (entry === undefined || !applyEntry(state, entry)) break;
    at = end;
  }
  return { state, length: at };
}

function contentOf(entry: TelemetryLogEntry): Uint8Array {
  switch (entry.kind) {
    case "report":
      return entry.report;
    case "seal": {
      const name = new TextEncoder().encode(entry.bootId);
      const content = new Uint8Array(12 + name.length);
      const view = new DataView(content.buffer);
      view.setBigUint64(0, entry.sequence, true);
      view.setUint32(8, entry.count, true);
      content.set(name, 12);
      return content;
    }
    case "drop":
    case "lost": {
      const content = new Uint8Array(8);
      new DataView(content.buffer).setBigUint64(0, BigInt(entry.count), true);
      return content;
    }
    default:
      return new Uint8Array(0);
  }
}

function parseEntry(code: number, content: Uint8Array): TelemetryLogEntry | undefined {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const kind = kinds[code];
  switch (kind) {
    case undefined:
      return undefined;
    case "report":
      return { kind, report: content };
    case "seal":
      if (content.length < 12) return undefined;
      return {
        kind,
        sequence: view.getBigUint64(0, true),
        count: view.getUint32(8, true),
        bootId: new TextDecoder().decode(content.subarray(12)),
      };
    case "drop":
    case "lost":
      return content.length === 8 ? { kind, count: Number(view.getBigUint64(0, true)) } : undefined;
    default:
      return content.length === 0 ? { kind } : undefined;
  }
}

const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** CRC-32 as of ISO 3309 (the one of zip and Ethernet). */
function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crcTable[(crc ^ byte) & 0xff] as number) ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Where the telemetry log is kept: a port. One queue at a time uses it. */
export interface TelemetryStorage {
  /** Opens the log for one queue and reads what is there. Throws DeviceError STORE_LOCKED where another has it. */
  open(): Promise<Uint8Array>;
  /** Makes the log this many bytes long, as found by `open`: what lies beyond was never written to its end. */
  truncate(length: number): Promise<void>;
  /** Appends bytes, all or none: what a failed append left is overwritten by the next. */
  append(bytes: Uint8Array): Promise<void>;
  /** Makes what was appended survive a power cut. */
  sync(): Promise<void>;
  /** Replaces the whole log, whole or not at all; durable when it resolves. */
  replace(bytes: Uint8Array): Promise<void>;
  /** Syncs and gives the log back. */
  close(): Promise<void>;
}

/** Keeps the telemetry log in memory: what has not been sent ends with the program. */
export function memoryTelemetry(initial: Uint8Array = new Uint8Array(0)): TelemetryStorage & { bytes(): Uint8Array } {
  let bytes = initial;
  return {
    bytes: () => bytes,
    async open() {
      return bytes;
    },
    async truncate(length) {
      bytes = bytes.slice(0, length);
    },
    async append(more) {
      const joined = new Uint8Array(bytes.length + more.length);
      joined.set(bytes);
      joined.set(more, bytes.length);
      bytes = joined;
    },
    async sync() {},
    async replace(whole) {
      bytes = whole;
    },
    async close() {},
  };
}

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DeviceError } from "./device-error.ts";
import { fileTelemetry } from "./file-telemetry.ts";
import {
  applyEntry,
  decodeLog,
  emptyLogState,
  encodeEntries,
  encodeLog,
  logHeader,
  type TelemetryLogEntry,
} from "./telemetry-log.ts";
import { openTelemetryQueue } from "./telemetry-queue.ts";
import type { TelemetryStorage } from "./telemetry-storage.ts";

const report = fc.uint8Array({ maxLength: 40 });
const entry: fc.Arbitrary<TelemetryLogEntry> = fc.oneof(
  { weight: 5, arbitrary: report.map((bytes) => ({ kind: "report" as const, report: bytes })) },
  fc.record({
    kind: fc.constant("seal" as const),
    bootId: fc.string({ maxLength: 8 }),
    sequence: fc.bigInt({ min: 0n, max: 2n ** 63n - 1n }),
    count: fc.integer({ min: 1, max: 3 }),
  }),
  fc.constantFrom("acknowledge" as const, "unseal" as const, "discard" as const).map((kind) => ({ kind })),
  fc.record({ kind: fc.constantFrom("drop" as const, "lost" as const), count: fc.integer({ min: 0, max: 3 }) }),
);
/** Entries that can follow one another. */
const history = fc.array(entry, { maxLength: 30 }).map((entries) => {
  const state = emptyLogState();
  return entries.filter((each) => applyEntry(state, each));
});

function stateAfter(entries: readonly TelemetryLogEntry[]) {
  const state = emptyLogState();
  for (const each of entries) applyEntry(state, each);
  return state;
}

function written(entries: readonly TelemetryLogEntry[]): Uint8Array {
  return Buffer.concat([logHeader, encodeEntries(entries)]);
}

describe("the telemetry log", () => {
  test("reads what it wrote", () => {
    fc.assert(
      fc.property(history, (entries) => {
        const bytes = written(entries);
        expect(decodeLog(bytes)).toEqual({ state: stateAfter(entries), length: bytes.length });
        expect(decodeLog(encodeLog(stateAfter(entries))).state).toEqual(stateAfter(entries));
      }),
    );
  });

  test("cut at any byte, is the log of the entries before", () => {
    fc.assert(
      fc.property(history, fc.nat(), (entries, at) => {
        const bytes = written(entries);
        const cut = at % (bytes.length + 1);
        const { state, length } = decodeLog(bytes.subarray(0, cut));
        expect(length).toBeLessThanOrEqual(cut);
        let whole = 0;
        while (whole < entries.length && written(entries.slice(0, whole + 1)).length <= cut) whole++;
        if (cut < logHeader.length) expect(length).toBe(0);
        else
          expect({ state, length }).toEqual({
            state: stateAfter(entries.slice(0, whole)),
            length: written(entries.slice(0, whole)).length,
          });
      }),
    );
  });

  test("with any byte changed, is the log of some entries before, and never throws", () => {
    fc.assert(
      fc.property(history, fc.nat(), fc.integer({ min: 1, max: 255 }), (entries, at, flip) => {
        const bytes = Uint8Array.from(written(entries));
        const index = at % bytes.length;
        bytes[index] = (bytes[index] as number) ^ flip;
        const { state } = decodeLog(bytes);
        const prefixes = entries.map((_, count) => stateAfter(entries.slice(0, count)));
        expect([...prefixes, emptyLogState()]).toContainEqual(state);
      }),
    );
  });

  test("takes any bytes for a log without throwing", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.boolean(), (bytes, isLog) => {
        decodeLog(isLog ? Buffer.concat([logHeader, bytes]) : bytes);
      }),
    );
  });
});

/** A disk that keeps what was synced, and of the rest as much as a power cut happens to leave. */
function disk() {
  let bytes: Uint8Array = new Uint8Array(0);
  let synced = 0;
  let isFull = false;
  const storage: TelemetryStorage = {
    open: async () => bytes,
    async truncate(length) {
      bytes = bytes.slice(0, length);
      synced = Math.min(synced, length);
    },
    async append(more) {
      if (isFull) throw new DeviceError("STORAGE", "no space left on device");
      bytes = Buffer.concat([bytes, more]);
    },
    async sync() {
      synced = bytes.length;
    },
    async replace(whole) {
      if (isFull) throw new DeviceError("STORAGE", "no space left on device");
      bytes = whole;
      synced = whole.length;
    },
    async close() {},
  };
  return {
    storage,
    size: () => bytes.length,
    fill: (full: boolean) => {
      isFull = full;
    },
    cutPower(choice: number) {
      bytes = bytes.slice(0, synced + (choice % (bytes.length - synced + 1)));
    },
  };
}

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const bytesOf = (value: string) => new TextEncoder().encode(value);

describe("the telemetry queue", () => {
  type Step =
    | { kind: "append"; count: number }
    | { kind: "send"; isAnswered: boolean }
    | { kind: "refuse" }
    | { kind: "crash"; choice: number };
  const step: fc.Arbitrary<Step> = fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({ kind: fc.constant("append" as const), count: fc.integer({ min: 1, max: 9 }) }),
    },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant("send" as const), isAnswered: fc.boolean() }) },
    fc.constant({ kind: "refuse" as const }),
    fc.record({ kind: fc.constant("crash" as const), choice: fc.nat() }),
  );

  test("whatever crashes: what was synced arrives, in order, and nothing is counted twice", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
        const { storage, cutPower } = disk();
        const stored = new Map<string, string[]>();
        let boots = 0;
        const boot = () => openTelemetryQueue({ storage, bootId: `boot${boots++}`, syncMs: 1e6 });
        let queue = await boot();
        let next = 0;
        /** Reports that may rightly be gone: they were appended, and the power was cut before they were synced. */
        const atRisk = new Set<string>();
        const lost = new Set<string>();
        const send = async (isAnswered: boolean) => {
          const batch = await queue.next();
          atRisk.clear();
          if (batch === undefined) return false;
          const name = `${batch.bootId}/${batch.sequence}`;
          const reports = batch.reports.map(text);
          // The same name always means the same reports.
          expect(stored.get(name) ?? reports).toEqual(reports);
          stored.set(name, reports);
          if (isAnswered) await queue.acknowledge();
          return true;
        };
        for (const each of steps) {
          if (each.kind === "append") {
            const values = Array.from({ length: each.count }, () => `r${next++}`);
            await queue.append(values.map(bytesOf));
            for (const value of values) atRisk.add(value);
          } else if (each.kind === "send") {
            await send(each.isAnswered);
          } else if (each.kind === "refuse") {
            const batch = await queue.next();
            atRisk.clear();
            // A mesh refuses a batch whole, so one that it has stored is not refused.
            if (batch !== undefined && !stored.has(`${batch.bootId}/${batch.sequence}`)) {
              const alone = batch.reports.length === 1 ? batch.reports.map(text) : [];
              expect(await queue.refuse()).toBe(alone.length);
              for (const value of alone) lost.add(value);
            }
          } else {
            cutPower(each.choice);
            for (const value of atRisk) lost.add(value);
            atRisk.clear();
            queue = await boot();
          }
        }
        while (await send(true));
        const arrived = [...stored.values()].flat();
        expect(new Set(arrived).size).toBe(arrived.length);
        for (let index = 0; index < next; index++) {
          if (!lost.has(`r${index}`)) expect(arrived).toContain(`r${index}`);
        }
        expect(queue.stats().queued).toBe(0);
      }),
      { numRuns: 150 },
    );
  });

  test("never holds more than it may: the oldest reports go, counted", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.integer({ min: 1, max: 30 }), fc.integer({ min: 0, max: 8_000 }), fc.boolean()), {
          maxLength: 25,
        }),
        async (appends) => {
          const { storage, size } = disk();
          let dropped = 0;
          const maxBytes = 64 * 1024;
          const queue = await openTelemetryQueue({
            storage,
            bootId: "boot",
            maxBytes,
            onDropped: (count) => {
              dropped += count;
            },
          });
          let appended = 0;
          let sent = 0;
          for (const [count, length, isSent] of appends) {
            await queue.append(Array.from({ length: count }, () => new Uint8Array(length)));
            appended += count;
            if (isSent) {
              sent += (await queue.next())?.reports.length ?? 0;
              await queue.acknowledge();
            }
            const stats = queue.stats();
            expect(stats.queuedBytes).toBeLessThanOrEqual(maxBytes);
            expect(size()).toBeLessThanOrEqual(2 * maxBytes + 64 * 1024);
            expect(stats.dropped).toBe(dropped);
            expect(stats.queued).toBe(appended - sent - dropped);
          }
          await queue.close();
        },
      ),
      { numRuns: 40 },
    );
  });

  test("drops the oldest, not the batch that is on its way", async () => {
    const { storage } = disk();
    const queue = await openTelemetryQueue({ storage, bootId: "boot", maxBytes: 64 * 1024 });
    const large = (name: string) => bytesOf(name.padEnd(8_000));
    await queue.append([large("a"), large("b"), large("c")]);
    const batch = await queue.next();
    await queue.append(["d", "e", "f", "g", "h", "i", "j"].map(large));
    expect((await queue.next())?.sequence).toBe(batch?.sequence);
    await queue.acknowledge();
    const rest: string[] = [];
    for (let next = await queue.next(); next; next = await queue.next()) {
      rest.push(...next.reports.map((bytes) => text(bytes).trim()));
      await queue.acknowledge();
    }
    expect(rest.at(-1)).toBe("j");
    expect(rest).not.toContain("d");
    await queue.close();
  });

  test("takes nothing from a full disk for granted, and goes on when there is room", async () => {
    const { storage, fill } = disk();
    const queue = await openTelemetryQueue({ storage, bootId: "boot" });
    await queue.append([bytesOf("kept")]);
    fill(true);
    await expect(queue.append([bytesOf("refused")])).rejects.toMatchObject({ kind: "STORAGE" });
    fill(false);
    await queue.append([bytesOf("later")]);
    expect((await queue.next())?.reports.map(text)).toEqual(["kept", "later"]);
    await queue.close();
  });

  test("refuses a report that is too large, and keeps the rest", async () => {
    const queue = await openTelemetryQueue({ storage: disk().storage, bootId: "boot" });
    await expect(queue.append([new Uint8Array(8_193)])).rejects.toMatchObject({ kind: "TELEMETRY_REFUSED" });
    expect(queue.stats().queued).toBe(0);
    await queue.close();
  });

  test("in a file, is whole again after a crash in the middle of an append", async () => {
    const folder = await mkdtemp(join(tmpdir(), "octomesh-queue-"));
    const path = join(folder, "telemetry.log");
    const first = await openTelemetryQueue({ storage: fileTelemetry(path), bootId: "one" });
    await first.append([bytesOf("a"), bytesOf("b")]);
    await first.close();
    const bytes = await readFile(path);
    await writeFile(path, bytes.subarray(0, bytes.length - 1));
    const second = await openTelemetryQueue({ storage: fileTelemetry(path), bootId: "two" });
    await second.append([bytesOf("c")]);
    expect((await second.next())?.reports.map(text)).toEqual(["a", "c"]);
    await second.close();
    const third = await openTelemetryQueue({ storage: fileTelemetry(path), bootId: "three" });
    expect(await third.next()).toMatchObject({ bootId: "two", sequence: 0n });
    await third.close();
    await rm(folder, { recursive: true });
  });
});

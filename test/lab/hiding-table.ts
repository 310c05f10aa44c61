import { createWriteStream } from "node:fs";
import { parseArgs } from "node:util";
import {
  type CapturedSession,
  capture,
  captureAvailable,
  defaultEdgeMs,
  type SessionTimes,
  timesOf,
} from "./capture.ts";
import { type HidingKind, hidingKinds } from "./intermediary.ts";
import { type Alarm, alarmOf, alarms } from "./judge.ts";

// Real sessions of every kind, and what the edge saw of them:
//
//   npx tsx test/lab/hiding-table.ts [--sessions N] [--legs 5,15] [--kinds connect,nat] [--edge 40] [--json FILE] [--markdown]
const usage = "[--sessions 1..1000] [--legs MS,…] [--kinds KIND,…] [--edge MS] [--json FILE] [--markdown]";

/** A line of `--json`: one session. */
export interface SessionLine {
  readonly label: HidingKind;
  /** Round trip from the browser to what stands between, ms; 0 for direct. */
  readonly legMs: number;
  /** The SignalBundle's bytes, base64. */
  readonly bundle: string;
}

/** Legs to the router of a home network, cable and wireless: they hide nothing and take no part in `--legs`. */
const homeLegsMs = [2, 10];

interface Row {
  readonly kind: HidingKind;
  readonly legMs: number;
  readonly times: readonly SessionTimes[];
  readonly alarms: readonly Alarm[];
}

const options = readOptions();
const missing = captureAvailable(options.kinds);
if (missing.length > 0) fail(`the laboratory is not available here: ${missing.join(", ")} missing`);
const file = options.json === undefined ? undefined : createWriteStream(options.json);
const rows: Row[] = [];
let problems = 0;
for (const kind of options.kinds) {
  for (const legMs of legsOf(kind)) {
    try {
      const sessions = await capture({ kind, legMs, edgeMs: options.edgeMs, sessions: options.sessions });
      for (const { bytes } of sessions) {
        const line: SessionLine = { label: kind, legMs, bundle: Buffer.from(bytes).toString("base64") };
        file?.write(`${JSON.stringify(line)}\n`);
      }
      rows.push(await rowOf(kind, legMs, sessions));
      process.stderr.write(`${kind} ${legMs} ms: ${sessions.length} sessions\n`);
    } catch (error) {
      problems += 1;
      process.stderr.write(`${kind} ${legMs} ms: ${error instanceof Error ? error.message : error}\n`);
    }
  }
}
await new Promise<void>((resolve) => (file === undefined ? resolve() : file.end(resolve)));
process.stdout.write(tableOf(rows, options.markdown));
process.exitCode = problems === 0 ? 0 : 1;

function readOptions() {
  let values: { sessions: string; legs: string; kinds: string; edge: string; json?: string; markdown: boolean };
  try {
    ({ values } = parseArgs({
      options: {
        sessions: { type: "string", default: "1" },
        legs: { type: "string", default: "5,15,60" },
        kinds: { type: "string", default: hidingKinds.join(",") },
        edge: { type: "string", default: String(defaultEdgeMs) },
        json: { type: "string" },
        markdown: { type: "boolean", default: false },
      },
    }));
  } catch (error) {
    return fail(`${error instanceof Error ? error.message : error}\nusage: hiding-table.ts ${usage}`);
  }
  const sessions = Number(values.sessions);
  const legsMs = values.legs.split(",").map(Number);
  const edgeMs = Number(values.edge);
  const kinds = values.kinds.split(",").map((name) => hidingKinds.find((kind) => kind === name));
  const areLengths = [...legsMs, edgeMs].every((ms) => ms > 0 && ms <= 1_000);
  const areKinds = kinds.every((kind): kind is HidingKind => kind !== undefined);
  if (!(Number.isInteger(sessions) && sessions >= 1 && sessions <= 1_000) || !areLengths || !areKinds) {
    return fail(`usage: hiding-table.ts ${usage}\n  KIND is one of ${hidingKinds.join(", ")}; MS up to 1000`);
  }
  return { sessions, legsMs, edgeMs, kinds: kinds as HidingKind[], json: values.json, markdown: values.markdown };
}

function legsOf(kind: HidingKind): number[] {
  if (kind === "direct") return [0];
  return kind === "nat" ? homeLegsMs : options.legsMs;
}

async function rowOf(kind: HidingKind, legMs: number, sessions: readonly CapturedSession[]): Promise<Row> {
  const judged: Alarm[] = [];
  for (const { bundle } of sessions) judged.push(await alarmOf(bundle));
  return { kind, legMs, times: sessions.map(({ bundle }) => timesOf(bundle)), alarms: judged };
}

/** Medians, with the least and the greatest where there are several sessions. */
function tableOf(all: readonly Row[], markdown: boolean): string {
  const head = ["kind", "leg ms", "sessions", "pings", "gap ms", "hello ms", "MSS", "TCP ms", "ICMP ms", "alarm"];
  const cells = all.map(({ kind, legMs, times, alarms: judged }) => [
    kind,
    String(legMs),
    String(times.length),
    [...new Set(times.map(({ pings }) => pings))].join(" "),
    spread(times.flatMap(({ gapMs }) => gapMs ?? [])),
    spread(times.map(({ helloMs }) => helloMs)),
    [...new Set(times.map(({ mss }) => mss))].join(" "),
    spread(times.map(({ tcpMs }) => tcpMs)),
    spread(times.flatMap(({ icmpMs }) => icmpMs ?? [])),
    alarms.flatMap((alarm) => count(alarm, judged)).join(", "),
  ]);
  const widths = head.map((name, index) => Math.max(name.length, ...cells.map((row) => row[index]?.length ?? 0)));
  const line = (row: readonly string[]) => row.map((cell, index) => cell.padEnd(widths[index] ?? 0));
  if (!markdown) return [head, ...cells].map((row) => `${line(row).join("  ").trimEnd()}\n`).join("");
  const rule = widths.map((width) => "-".repeat(width));
  return [line(head), rule, ...cells.map(line)].map((row) => `| ${row.join(" | ")} |\n`).join("");
}

function spread(numbers: readonly number[]): string {
  const sorted = [...numbers].sort((a, b) => a - b);
  const [least, middle, greatest] = [sorted[0], sorted[Math.floor(sorted.length / 2)], sorted.at(-1)];
  if (least === undefined || middle === undefined || greatest === undefined) return "none";
  return sorted.length === 1 ? least.toFixed(1) : `${middle.toFixed(1)} (${least.toFixed(1)}-${greatest.toFixed(1)})`;
}

function count(alarm: Alarm, judged: readonly Alarm[]): string[] {
  const found = judged.filter((each) => each === alarm).length;
  if (found === 0) return [];
  return [judged.length === 1 ? alarm : `${alarm} ${found}`];
}

function fail(problem: string): never {
  process.stderr.write(`${problem}\n`);
  process.exit(2);
}

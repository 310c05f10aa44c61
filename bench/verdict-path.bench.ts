/**
 * The way of a verdict: a report posted to the edge, forwarded over mutual TLS, judged, and read by a backend.
 *
 *   npm run bench -- verdict-path [--json] [--seconds N] [--concurrency N] [--pages N]
 *
 * The mesh runs as one process for each service. One session at a time first, which says how long the way is; then
 * `--concurrency` at a time for `--seconds`, which says what a core carries, and how long they wait for each other. Each
 * is one POST to the edge and one read at the public origin. Forward and read limits are raised, since this asks what
 * the code can do and not what the configuration allows. Beside it, in the same run and at the same concurrency, the
 * floor: the same number of bytes posted to a bare `node:http` server that answers `{"ok":true}`. Then `--pages` pages of
 * each mode in Chromium over a link of 40 ms (see verdict-page.ts); its floor is the collector's own time limit.
 */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { Agent, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { apiKey, createClients } from "@octomesh/sdk";
import { startMesh } from "../launcher/demo/mesh-process.ts";
import { postReport } from "./post-report.ts";
import { cpuSecondsOf, processOf } from "./process-cpu.ts";
import { quantile } from "./quantile.ts";
import { setUpVerdicts } from "./set-up-verdicts.ts";
import { measurePages, pageAvailable } from "./verdict-page.ts";

const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    seconds: { type: "string", default: "15" },
    concurrency: { type: "string", default: "16" },
    pages: { type: "string", default: "20" },
  },
});
const seconds = Number(values.seconds);
const concurrency = Number(values.concurrency);
const pages = Number(values.pages);
const pageRttMs = 40;
const say = (text: string): void => void process.stderr.write(`${text}\n`);

const folder = await mkdtemp(join(tmpdir(), "octomesh-bench-verdict-"));
const unlimited = Object.fromEntries(
  ["EDGE", "INFERENCE", "UNAUTHENTICATED", "CONTROL_SESSION"].map((name) => [`OCTOMESH_LIMIT_${name}`, "10000000"]),
);
say("starting the mesh, one process for each service …");
const mesh = await startMesh({ stateDir: join(folder, "state"), processes: true, env: unlimited });
try {
  const partnerKey = await setUpVerdicts(mesh);
  const floor = await measureFloor();
  const alone = await measurePath(partnerKey, 1, Math.min(seconds, 5));
  const path = await measurePath(partnerKey, concurrency, seconds);
  await mesh.stop();
  const page = await measurePage();
  const report = {
    cpu: cpus()[0]?.model ?? "",
    cores: cpus().length,
    node: process.version,
    seconds,
    concurrency,
    sessions: path.count,
    sessions_per_second: round(path.count / path.elapsedS),
    edge_cpu_us_per_session: round((path.edgeCpuS / path.count) * 1e6),
    verdict_cpu_us_per_session: round((path.verdictCpuS / path.count) * 1e6),
    sessions_per_second_per_core: round(path.count / (path.edgeCpuS + path.verdictCpuS)),
    ack_ms: summary(path.ackMs),
    readable_ms: summary(path.readableMs),
    floor_ack_ms: summary(floor),
    ack_over_floor_p50: round(quantile(path.ackMs, 0.5) / quantile(floor, 0.5)),
    one_at_a_time: { sessions: alone.count, ack_ms: summary(alone.ackMs), readable_ms: summary(alone.readableMs) },
    refused: path.refused + alone.refused,
    page_rtt_ms: pageRttMs,
    pages_of_each_mode: page === undefined ? 0 : pages,
    page_to_readable_ms: page,
  };
  process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : `${JSON.stringify(report, null, 2)}\n`);
  if (report.refused > 0) process.exitCode = 1;
} finally {
  await mesh.stop();
  await rm(folder, { recursive: true, force: true });
}

/** Page times by mode; undefined, and said why, where they cannot be measured. */
async function measurePage(): Promise<Record<string, { p50: number; p99: number }> | undefined> {
  const missing = pageAvailable();
  if (pages === 0 || missing.length > 0) {
    say(`pages are not measured: ${missing.join(", ") || "--pages 0"}`);
    return undefined;
  }
  say(`measuring ${pages} pages of each mode …`);
  const times = await measurePages({ rttMs: pageRttMs, sessions: pages });
  return Object.fromEntries(
    Object.entries(times).map(([mode, ms]) => [
      mode,
      { p50: round(quantile(ms, 0.5)), p99: round(quantile(ms, 0.99)) },
    ]),
  );
}

function reportOf(sessionRef: string): string {
  return JSON.stringify({
    v: 1,
    ref: sessionRef,
    mode: "full",
    env: { languages: ["de-DE", "en"], tz: "Europe/Berlin", offset: -60, platform: "Linux x86_64", mobile: false },
    timing: { step: 0.1, rt: [{ url: "https://edge.example.com", n: 10, min: 41.2, med: 42.6 }], pings: 0, ms: 820 },
    end: "done",
  });
}

interface PathFigures {
  count: number;
  refused: number;
  elapsedS: number;
  ackMs: number[];
  readableMs: number[];
  edgeCpuS: number;
  verdictCpuS: number;
}

async function measurePath(partnerKey: string, concurrency: number, seconds: number): Promise<PathFigures> {
  const edgePid = await processOf("edge-relay.mjs");
  const verdictPid = await processOf("verdict.mjs");
  const agent = new Agent({ keepAlive: true, maxSockets: concurrency });
  const backend = createClients({ baseUrl: mesh.url, credential: apiKey(partnerKey), timeoutMs: 20_000 });
  const figures: PathFigures = {
    count: 0,
    refused: 0,
    elapsedS: 0,
    ackMs: [],
    readableMs: [],
    edgeCpuS: 0,
    verdictCpuS: 0,
  };
  let isWarm = false;
  const one = async (): Promise<void> => {
    const ref = `bench-${randomBytes(12).toString("base64url")}`;
    const begin = performance.now();
    const status = await postReport(`${mesh.edgeUrl}/v1/signals`, reportOf(ref), agent);
    const acked = performance.now();
    if (status !== 200) {
      figures.refused += 1;
      return;
    }
    await backend.verdicts.getVerdict({ sessionRef: ref, waitMs: 10_000 });
    if (!isWarm) return;
    figures.count += 1;
    figures.ackMs.push(acked - begin);
    figures.readableMs.push(performance.now() - begin);
  };
  const run = async (forMs: number): Promise<void> => {
    const end = performance.now() + forMs;
    await Promise.all(
      Array.from({ length: concurrency }, async () => {
        while (performance.now() < end) await one();
      }),
    );
  };
  say(`${concurrency} at a time: warming up for 3 s …`);
  await run(3000);
  isWarm = true;
  say(`measuring for ${seconds} s …`);
  const [edgeBefore, verdictBefore] = [await cpuSecondsOf(edgePid), await cpuSecondsOf(verdictPid)];
  const begin = performance.now();
  await run(seconds * 1000);
  figures.elapsedS = (performance.now() - begin) / 1000;
  figures.edgeCpuS = (await cpuSecondsOf(edgePid)) - edgeBefore;
  figures.verdictCpuS = (await cpuSecondsOf(verdictPid)) - verdictBefore;
  backend.close();
  agent.destroy();
  return figures;
}

async function measureFloor(): Promise<number[]> {
  const server = createServer((incoming, response) => {
    incoming.resume();
    incoming.on("end", () => response.setHeader("content-type", "application/json").end('{"ok":true}'));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/signals`;
  const agent = new Agent({ keepAlive: true, maxSockets: concurrency });
  const latencies: number[] = [];
  const end = performance.now() + 2000;
  await Promise.all(
    Array.from({ length: concurrency }, async () => {
      while (performance.now() < end) {
        const begin = performance.now();
        await postReport(url, reportOf("floor"), agent);
        latencies.push(performance.now() - begin);
      }
    }),
  );
  agent.destroy();
  server.close();
  return latencies;
}

function summary(ms: readonly number[]): { p50: number; p99: number } {
  return { p50: round(quantile(ms, 0.5)), p99: round(quantile(ms, 0.99)) };
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}

/**
 * What many sessions at a time cost in memory.
 *
 *   npm run bench -- in-flight [--json] [--sessions N]
 *
 * The mesh runs as one process for each service. `--sessions` (10,000) sessions are registered by a backend with a nonce
 * each; a latency channel of each answers 10 pings, and the edge keeps what it measured; then each session's report is
 * posted, forwarded, judged and kept, and one in a hundred is read. Beside it the memory of the two processes before any
 * session. Exits with 1 where a process had more than 300 MB resident, the target, or where a session was lost.
 */
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { Agent } from "node:http";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { apiKey, createClients, readVerdict } from "@octomesh/sdk";
import { WebSocket } from "ws";
import { startMesh } from "../launcher/demo/mesh-process.ts";
import { postReport } from "./post-report.ts";
import { processOf } from "./process-cpu.ts";
import { peakResidentMb } from "./resident.ts";
import { setUpVerdicts } from "./set-up-verdicts.ts";

const { values } = parseArgs({
  options: { json: { type: "boolean", default: false }, sessions: { type: "string", default: "10000" } },
});
const sessions = Number(values.sessions);
const concurrency = 100;
const targetMb = 300;
const say = (text: string): void => void process.stderr.write(`${text}\n`);

interface Session {
  readonly ref: string;
  readonly nonce: string;
  channel: string;
}

const folder = await mkdtemp(join(tmpdir(), "octomesh-bench-flight-"));
const unlimited = Object.fromEntries(
  ["EDGE", "INFERENCE", "UNAUTHENTICATED", "CONTROL_SESSION"].map((name) => [`OCTOMESH_LIMIT_${name}`, "10000000"]),
);
say("starting the mesh, one process for each service …");
const mesh = await startMesh({ stateDir: join(folder, "state"), processes: true, env: unlimited });
try {
  const backend = createClients({
    baseUrl: mesh.url,
    credential: apiKey(await setUpVerdicts(mesh)),
    timeoutMs: 20_000,
  });
  const pids = { edge: await processOf("edge-relay.mjs"), verdict: await processOf("verdict.mjs") };
  const before = { edge: await peakResidentMb(pids.edge), verdict: await peakResidentMb(pids.verdict) };
  const all: Session[] = Array.from({ length: sessions }, () => ({
    ref: `flight-${randomBytes(12).toString("base64url")}`,
    nonce: randomBytes(16).toString("base64url"),
    channel: "",
  }));
  say(`registering ${sessions} sessions …`);
  await inParallel(all, async ({ ref, nonce }) => {
    await backend.verdicts.createVerdictSession({ sessionRef: ref, nonce });
  });
  say("their latency channels …");
  await inParallel(all, async (session) => {
    session.channel = await answerPings(session.ref);
  });
  say("their reports …");
  const agent = new Agent({ keepAlive: true, maxSockets: concurrency });
  let lost = 0;
  await inParallel(all, async (session) => {
    const status = await postReport(`${mesh.edgeUrl}/v1/signals`, reportOf(session), agent);
    if (status !== 200) lost += 1;
  });
  agent.destroy();
  await inParallel(
    all.filter((_, index) => index % 100 === 0),
    async ({ ref }) => {
      if ((await readVerdict(backend, ref, { waitMs: 10_000 })).state !== "ready") lost += 1;
    },
  );
  backend.close();
  const report = {
    cpu: cpus()[0]?.model ?? "",
    node: process.version,
    sessions,
    lost,
    edge_peak_mb: Math.round(await peakResidentMb(pids.edge)),
    edge_before_mb: Math.round(before.edge),
    verdict_peak_mb: Math.round(await peakResidentMb(pids.verdict)),
    verdict_before_mb: Math.round(before.verdict),
    target_mb: targetMb,
  };
  process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : `${JSON.stringify(report, null, 2)}\n`);
  if (lost > 0 || report.edge_peak_mb > targetMb || report.verdict_peak_mb > targetMb) process.exitCode = 1;
} finally {
  await mesh.stop();
  await rm(folder, { recursive: true, force: true });
}

async function inParallel(items: readonly Session[], work: (item: Session) => Promise<void>): Promise<void> {
  const left = items[Symbol.iterator]();
  await Promise.all(
    Array.from({ length: concurrency }, async () => {
      for (const item of left) await work(item);
    }),
  );
}

/** Plays the browser's part of a latency channel; answers its id. */
async function answerPings(ref: string): Promise<string> {
  const digest = createHash("sha256").update(ref).digest("base64url");
  const socket = new WebSocket(`${mesh.edgeUrl.replace(/^http/, "ws")}/v1/ws?d=${digest}`, {
    origin: "http://localhost",
    perMessageDeflate: false,
  });
  let channel = "";
  socket.on("message", (data) => {
    const message = JSON.parse(String(data)) as { t: string; channel?: string };
    if (message.t !== "hello") return;
    channel = message.channel ?? "";
    socket.send('{"t":"start","pings":10}');
  });
  await once(socket, "close");
  return channel;
}

function reportOf({ ref, nonce, channel }: Session): string {
  return JSON.stringify({
    v: 1,
    ref,
    nonce,
    mode: "full",
    channel,
    env: { languages: ["de-DE", "en"], tz: "Europe/Berlin", offset: -60, platform: "Linux x86_64", mobile: false },
    timing: { step: 0.1, rt: [{ url: "https://edge.example.com", n: 10, min: 41.2, med: 42.6 }], pings: 10, ms: 820 },
    end: "done",
  });
}

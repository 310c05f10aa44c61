import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { fromBinary } from "@bufbuild/protobuf";
import { type SignalBundle, SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import { type HidingKind, startIntermediary, toolsOf } from "./intermediary.ts";
import { createLab, type Lab, labAvailable } from "./lab.ts";

/** Round trip from whatever stands before the edge to the edge, ms, where nothing else is said. */
export const defaultEdgeMs = 40;

/** One session as the edge forwarded it. */
export interface CapturedSession {
  /** The bytes that the edge signed. */
  readonly bytes: Uint8Array;
  readonly bundle: SignalBundle;
}

const [client, near, far, edge] = ["10.77.0.2", "10.77.0.1", "10.77.1.2", "10.77.1.1"];

/** The browser: `CHROMIUM_PATH`, or where distributions put it; undefined where there is none. */
export function findChromium(): string | undefined {
  const paths = [process.env.CHROMIUM_PATH ?? "", "/usr/bin/chromium", "/usr/bin/chromium-browser"];
  return paths.find((path) => path !== "" && existsSync(path));
}

/** What is missing to capture sessions of these kinds; empty where all is there. */
export function captureAvailable(kinds: readonly HidingKind[]): string[] {
  const missing = labAvailable(kinds.flatMap((kind) => toolsOf[kind]));
  return findChromium() === undefined ? [...missing, "chromium"] : missing;
}

/**
 * Has Chromium, in a laboratory of its own, run sessions with the edge, one after the other, and gives what the edge
 * forwarded of each. Rejects where the browser, an intermediary or the edge fails, and after 60 s and 30 s more for each
 * session; leaves nothing running.
 *
 * @param legMs round trip from the browser to what stands between; of no meaning for "direct"
 * @param edgeMs round trip from there, or from the browser itself, to the edge
 * @param sessions 1 to 1,000
 */
export async function capture(options: {
  kind: HidingKind;
  legMs: number;
  edgeMs?: number;
  sessions?: number;
}): Promise<CapturedSession[]> {
  const { kind, legMs, edgeMs = defaultEdgeMs, sessions = 1 } = options;
  const executablePath = findChromium();
  if (executablePath === undefined) throw new Error("chromium is missing");
  const limitMs = 60_000 + 30_000 * sessions;
  const lab = await createLab(topologyOf(kind, legMs, edgeMs), { lifeMs: limitMs + 60_000 });
  const folder = await mkdtemp(join(tmpdir(), "octomesh-lab-"));
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${kind}: not done in ${limitMs / 1_000} s`)), limitMs);
  });
  try {
    return await Promise.race([runSessions(lab, { kind, sessions, executablePath, folder }), late]);
  } finally {
    clearTimeout(timer);
    await lab.close();
    await rm(folder, { recursive: true, force: true });
  }
}

function topologyOf(kind: HidingKind, legMs: number, edgeMs: number) {
  if (kind === "direct") {
    return { namespaces: ["client", "edge"], links: [link("client", far, "edge", edge, edgeMs)] };
  }
  const links = [link("client", client, "middle", near, legMs), link("middle", far, "edge", edge, edgeMs)];
  return { namespaces: ["client", "middle", "edge"], links };
}

function link(one: string, oneAddress: string, two: string, twoAddress: string, rtt: number) {
  return {
    ends: [
      { namespace: one, address: oneAddress },
      { namespace: two, address: twoAddress },
    ],
    rtt,
  } as const;
}

async function runSessions(
  lab: Lab,
  job: { kind: HidingKind; sessions: number; executablePath: string; folder: string },
): Promise<CapturedSession[]> {
  const { kind, sessions, executablePath, folder } = job;
  const server = lab.run("edge", process.execPath, program("capture-edge.ts", { address: edge }), {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = linesOf(server);
  const proxy = await startIntermediary(lab, kind, {
    client: { namespace: "client", address: client },
    middle: { namespace: "middle", address: near, device: "d1a" },
    edgeNetwork: "10.77.1.0/24",
    folder,
  });
  const { url } = JSON.parse((await lines.next()).value ?? "{}") as { url?: string };
  if (url === undefined) throw new Error(`${kind}: the edge did not start`);
  const browser = lab.run("client", process.execPath, program("browse.ts", { url, proxy, sessions, executablePath }), {
    stdio: ["ignore", "ignore", "inherit"],
  });
  const [code] = await once(browser, "exit");
  if (code !== 0) throw new Error(`${kind}: the browser's program ended with ${code}`);
  const captured: CapturedSession[] = [];
  while (captured.length < sessions) {
    const { bundle } = JSON.parse((await lines.next()).value ?? "{}") as { bundle?: string };
    if (bundle === undefined) throw new Error(`${kind}: the edge ended early`);
    const bytes = Buffer.from(bundle, "base64");
    captured.push({ bytes, bundle: fromBinary(SignalBundleSchema, bytes) });
  }
  return captured;
}

function program(name: string, job: object): string[] {
  const file = fileURLToPath(new URL(name, import.meta.url));
  return ["--import", import.meta.resolve("tsx"), file, JSON.stringify(job)];
}

function linesOf(child: ChildProcess): AsyncIterator<string, undefined> {
  if (child.stdout === null) throw new Error("no output to read");
  return createInterface({ input: child.stdout })[Symbol.asyncIterator]() as AsyncIterator<string, undefined>;
}

/** What the numbers of a session say, ms and bytes. */
export interface SessionTimes {
  /** WebSocket pings that the browser answered. */
  readonly pings: number;
  /** The kernel's least round trip of the latency channel, or of the report's connection where there was no channel. */
  readonly tcpMs: number;
  /** By how much the browser answers its pings later than the far end of its connection does; undefined without pings. */
  readonly gapMs: number | undefined;
  /** From the accept to the ClientHello, on the report's connection. */
  readonly helloMs: number;
  /** The segment size of the SYN, or what the kernel sends plus the 12 bytes of time stamps. */
  readonly mss: number;
  /** Least ICMP round trip to the source address; undefined where it did not answer. */
  readonly icmpMs: number | undefined;
}

/** Reads the numbers of a session. */
export function timesOf({ connection, latencyChannel, icmpRttUs }: SignalBundle): SessionTimes {
  const trips = (latencyChannel?.roundTripUs ?? []).map(Number);
  const timed = trips.length > 0 ? latencyChannel?.connection : connection;
  const tcpMs = Number(timed?.minRttUs ?? 0n) / 1_000;
  return {
    pings: trips.length,
    tcpMs,
    gapMs: trips.length > 0 ? Math.min(...trips) / 1_000 - tcpMs : undefined,
    helloMs: Number(connection?.helloDelayUs ?? 0n) / 1_000,
    mss: connection?.syn?.mss ?? (connection?.mss ?? 0) + 12,
    icmpMs: icmpRttUs > 0n ? Number(icmpRttUs) / 1_000 : undefined,
  };
}

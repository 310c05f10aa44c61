import type { ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { captureAvailable, findChromium } from "../test/lab/capture.ts";
import { createLab, type Lab } from "../test/lab/lab.ts";

/** What the collector is told to measure. */
export type PageMode = "full" | "lite" | "passive";

/** From the start of a page's navigation to a verdict that its backend has read, milliseconds, one for each session. */
export type PageTimes = Readonly<Record<PageMode, readonly number[]>>;

/** What is missing to measure pages; empty where all is there. */
export function pageAvailable(): string[] {
  return captureAvailable(["direct"]);
}

const [client, host] = ["10.77.1.2", "10.77.1.1"];

/**
 * Has Chromium open pages over a link: a page whose collector reports to a stand-alone edge, which forwards with licence
 * and client certificate over mutual TLS to a mesh, while the page's backend waits for the verdict from the moment that
 * it serves the page. Browser and servers are on one machine, and so on one clock.
 *
 * @param rttMs round trip of the link
 * @param sessions how many of each mode, each in a new browser: nothing is cached, and no connection is open
 */
export async function measurePages(options: { rttMs: number; sessions: number }): Promise<PageTimes> {
  const lab = await createLab(
    {
      namespaces: ["client", "host"],
      links: [
        {
          ends: [
            { namespace: "client", address: client },
            { namespace: "host", address: host },
          ],
          rtt: options.rttMs,
        },
      ],
    },
    { lifeMs: 900_000 },
  );
  try {
    const server = start(lab, "host", "verdict-page-host.ts", { address: host });
    const readable = new Map<string, number>();
    const { url } = (await server.next()) as { url: string };
    const browser = start(lab, "client", "verdict-page-browse.ts", {
      url,
      sessions: options.sessions,
      executablePath: findChromium(),
    });
    const times: Record<PageMode, number[]> = { full: [], lite: [], passive: [] };
    for (let session = 0; session < 3 * options.sessions; session += 1) {
      const opened = (await browser.next()) as { ref: string; mode: PageMode; beginMs: number };
      while (!readable.has(opened.ref)) {
        const read = (await server.next()) as { ref: string; readMs: number };
        readable.set(read.ref, read.readMs);
      }
      times[opened.mode].push((readable.get(opened.ref) ?? Number.NaN) - opened.beginMs);
    }
    return times;
  } finally {
    await lab.close();
  }
}

/** Starts a program of this folder and reads the JSON of its lines. */
function start(lab: Lab, namespace: string, file: string, job: object): { next(): Promise<unknown> } {
  const program = fileURLToPath(new URL(file, import.meta.url));
  const args = ["--import", import.meta.resolve("tsx"), program, JSON.stringify(job)];
  const child: ChildProcess = lab.run(namespace, process.execPath, args, { stdio: ["pipe", "pipe", "inherit"] });
  if (child.stdout === null) throw new Error("no output to read");
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    async next() {
      const { value, done } = await lines.next();
      if (done) throw new Error(`${file} ended early`);
      return JSON.parse(value);
    },
  };
}

import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { startTestEdge, type TestEdge } from "./testing/test-edge.ts";

// A machine without the browser skips these: nothing else of the tests needs one.
const executablePath = [
  process.env.CHROMIUM_PATH ?? "",
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
].find((path) => path !== "" && existsSync(path));

type Collector = typeof import("./octet-collector.ts");
type Options = Omit<import("./octet-collector.ts").VerifyOptions, "signal">;
type Outcome = { value: unknown } | { code: string; status?: number; message: string };

declare global {
  /** In the page: the script's global. */
  var octet: Collector;
  /** In the page: the policy's violations. */
  var violations: string[];
}

const nonce = "nonce-of-the-session";
const digestOf = (ref: string): string => createHash("sha256").update(ref).digest("base64url");

describe.skipIf(executablePath === undefined)("the collector in Chromium", () => {
  let folder: string;
  let integrity: string;
  let browser: Browser;
  let pages: TestEdge;
  let context: BrowserContext;
  let page: Page;
  let trouble: string[];
  const edges: TestEdge[] = [];

  const edge = async (options?: Parameters<typeof startTestEdge>[0]): Promise<TestEdge> => {
    const started = await startTestEdge(options);
    edges.push(started);
    return started;
  };

  /** Serves the bundle, and pages under the policy and with the integrity that their query asks for. */
  const servePage = (request: IncomingMessage, response: ServerResponse): void => {
    const url = new URL(request.url ?? "/", "http://pages");
    if (url.pathname.startsWith("/octet-collector.")) {
      response.writeHead(200, { "content-type": "text/javascript", "access-control-allow-origin": "*" });
      response.end(readFileSync(join(folder, url.pathname.slice(1))));
    } else if (url.pathname === "/page.mjs") {
      response.writeHead(200, { "content-type": "text/javascript" });
      response.end('import * as octet from "/octet-collector.mjs"; globalThis.octet = octet;');
    } else if (url.pathname === "/watch.js") {
      response.writeHead(200, { "content-type": "text/javascript" });
      response.end(
        "globalThis.violations = []; addEventListener('securitypolicyviolation', (e) => violations.push(e.violatedDirective));",
      );
    } else if (url.pathname === "/favicon.ico") {
      response.writeHead(204).end();
    } else {
      const connect = url.searchParams.get("connect") ?? "'none'";
      const sri = url.searchParams.get("sri") ?? integrity;
      const script = url.searchParams.has("module")
        ? '<script type="module" src="/page.mjs"></script>'
        : `<script src="/octet-collector.js" integrity="${sri}" crossorigin="anonymous"></script>`;
      response.writeHead(200, {
        "content-type": "text/html",
        "content-security-policy": `default-src 'none'; script-src 'self'; connect-src ${connect}`,
      });
      response.end(`<!doctype html><title>page</title><script src="/watch.js"></script>${script}`);
    }
  };

  const open = async (query: Record<string, string>, origin = pages.url): Promise<void> => {
    await page.goto(`${origin}/page?${new URLSearchParams(query)}`);
  };

  /** Opens a page that may connect to these edges, over HTTP and WebSockets. */
  const openFor = (...allowed: TestEdge[]): Promise<void> =>
    open({ connect: allowed.flatMap(({ url }) => [url, url.replace("http", "ws")]).join(" ") });

  const verify = (options: Options): Promise<Outcome> =>
    page.evaluate(
      (given) =>
        octet.verify(given).then(
          (value) => ({ value }),
          ({ code, status, message }) => ({ code, status, message }),
        ),
      options,
    );

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "collector-"));
    const { buildCollector } = await import(fileURLToPath(new URL("build.mjs", import.meta.url)));
    ({ integrity } = await buildCollector({ log: () => {}, outDir: folder }));
    pages = await startTestEdge({ page: servePage });
    browser = await chromium.launch({
      executablePath,
      args: [
        ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
        // An origin that is not loopback by its name, and hence not secure over http.
        "--host-resolver-rules=MAP example.test 127.0.0.1",
      ],
    });
  });
  afterAll(async () => {
    await browser?.close();
    await pages?.close();
    rmSync(folder, { recursive: true, force: true });
  });
  beforeEach(async () => {
    context = await browser.newContext({ locale: "de-DE", timezoneId: "Europe/Berlin" });
    page = await context.newPage();
    trouble = [];
    page.on("console", (message) => trouble.push(message.text()));
    page.on("pageerror", (error) => trouble.push(error.message));
  });
  afterEach(async () => {
    await context.close();
    for (const each of edges.splice(0)) await each.close();
  });

  test("full measures the channel, the requests and the landmarks, under a strict policy, and leaves nothing", async () => {
    const [named, asked] = [await edge(), await edge()];
    const home = await edge({ landmarks: [named.wsUrl], delayMs: 5 });
    await openFor(home, named, asked);
    const options = { apiUrl: `${home.url}/`, sessionRef: "sess_full", nonce, landmarks: [asked.wsUrl] };
    expect(await verify(options)).toEqual({ value: { ok: true } });
    const [channel] = [...home.pongs.keys()];
    const measurement = Buffer.from(`measured ${digestOf("sess_full")}`).toString("base64url");
    const taken = home.reports.map(({ report }) => report);
    expect(taken).toEqual([
      {
        v: 1,
        ref: "sess_full",
        nonce,
        mode: "full",
        channel,
        env: {
          languages: ["de-DE"],
          tz: "Europe/Berlin",
          offset: expect.any(Number),
          platform: "Linux",
          mobile: false,
        },
        timing: {
          step: expect.any(Number),
          rt: [{ url: home.url, n: 12, min: expect.any(Number), med: expect.any(Number) }],
          pings: 20,
          ms: expect.any(Number),
        },
        landmarks: expect.arrayContaining([
          { url: asked.wsUrl, m: measurement },
          { url: named.wsUrl, m: measurement },
        ]),
        end: "done",
      },
    ]);
    const { step, rt } = taken[0]!.timing as { step: number; rt: { min: number; med: number }[] };
    expect(step).toBeGreaterThan(0);
    expect(step).toBeLessThanOrEqual(2);
    // The edge holds its answers back this long: a reading below would be of something else.
    expect(rt[0]?.min).toBeGreaterThanOrEqual(4);
    expect(rt[0]?.med).toBeGreaterThanOrEqual(rt[0]?.min ?? 0);
    expect(home.pings).toEqual(Array.from({ length: 13 }, (_, n) => `/v1/ping?n=${n}`));
    for (const landmark of [named, asked]) {
      expect(landmark.digests).toEqual([digestOf("sess_full")]);
      expect([...landmark.pongs.values()]).toEqual([12]);
      expect(landmark.reports).toEqual([]);
    }
    expect(home.reports[0]).toMatchObject({ contentType: "text/plain;charset=UTF-8", cookie: undefined });
    expect(home.reports[0]?.bytes).toBeLessThan(64 * 1024);
    expect(trouble).toEqual([]);
    const left = await page.evaluate(async () => ({
      violations: globalThis.violations,
      cookie: document.cookie,
      stored: localStorage.length + sessionStorage.length,
      databases: await indexedDB.databases(),
      caches: await caches.keys(),
    }));
    expect(left).toEqual({ violations: [], cookie: "", stored: 0, databases: [], caches: [] });
    expect(await context.cookies()).toEqual([]);
    await vi.waitFor(() => expect([home.open, named.open, asked.open]).toEqual([0, 0, 0]));
  });

  test("lite measures the channel alone", async () => {
    const landmark = await edge();
    const home = await edge({ landmarks: [landmark.wsUrl] });
    await openFor(home, landmark);
    expect(await verify({ apiUrl: home.url, sessionRef: "sess_lite", mode: "lite" })).toEqual({ value: { ok: true } });
    const { report } = home.reports[0] ?? {};
    expect(report).toMatchObject({ mode: "lite", channel: expect.any(String), timing: { pings: 10 }, end: "done" });
    expect(report?.timing).not.toHaveProperty("rt");
    expect(report).not.toHaveProperty("landmarks");
    expect(home.pings).toEqual([]);
    expect(landmark.digests).toEqual([]);
  });

  test.each([{ mode: "passive" as const }, { passiveOnly: true }])("passive only reports: %o", async (options) => {
    const home = await edge();
    await openFor(home);
    expect(await verify({ apiUrl: home.url, sessionRef: "sess_passive", ...options })).toEqual({ value: { ok: true } });
    const { report } = home.reports[0] ?? {};
    expect(report).toMatchObject({ mode: "passive", timing: { pings: 0 }, end: "done" });
    expect(Object.keys(report ?? {})).toEqual(["v", "ref", "mode", "env", "timing", "end"]);
    expect([home.pings, home.digests]).toEqual([[], []]);
  });

  test("the module does the same, and an edge of the page's own origin gets JSON", async () => {
    await open({ module: "", connect: "'self'" });
    await page.waitForFunction(() => globalThis.octet !== undefined);
    expect(await verify({ apiUrl: "/", sessionRef: "sess_module", mode: "passive" })).toEqual({ value: { ok: true } });
    expect(pages.reports.map(({ contentType, report }) => [contentType, report.ref])).toEqual([
      ["application/json", "sess_module"],
    ]);
    expect(trouble).toEqual([]);
  });

  test.each(["policy", "network"])("a page whose %s blocks WebSockets reports all the same", async (blocker) => {
    const home = await edge();
    const gone = await startTestEdge();
    await gone.close();
    await open({ connect: blocker === "policy" ? home.url : `${home.url} ${gone.wsUrl}` });
    const outcome = await verify({ apiUrl: home.url, sessionRef: "sess_blocked", wsUrl: gone.wsUrl });
    expect(outcome).toEqual({ value: { ok: true } });
    const { report } = home.reports[0] ?? {};
    expect(report).toMatchObject({ timing: { rt: [{ n: 12 }], pings: 0 }, end: "failed" });
    expect(report).not.toHaveProperty("channel");
    expect(await page.evaluate(() => globalThis.violations)).toEqual(blocker === "policy" ? ["connect-src"] : []);
  });

  test("what does not end in time is left out, and the rest is sent", async () => {
    const [good, stuck] = [await edge(), await edge({ isSilent: true })];
    const home = await edge({ landmarks: [stuck.wsUrl, good.wsUrl] });
    await openFor(home, good, stuck);
    expect(await verify({ apiUrl: home.url, sessionRef: "sess_late" })).toEqual({ value: { ok: true } });
    const { report } = home.reports[0] ?? {};
    expect(report).toMatchObject({
      timing: { rt: [{ n: 12 }], pings: 20 },
      landmarks: [{ url: good.wsUrl }],
      end: "timeout",
    });
    await vi.waitFor(() => expect(stuck.open).toBe(0));
  });

  test("an abort ends it: nothing is sent, and every socket is closed", async () => {
    const stuck = await edge({ isSilent: true });
    const home = await edge({ isSilent: true, landmarks: [stuck.wsUrl], delayMs: 50 });
    await openFor(home, stuck);
    await page.evaluate(
      ({ apiUrl }) => {
        const controller = new AbortController();
        const outcome = octet
          .verify({ apiUrl, sessionRef: "sess_abort", signal: controller.signal })
          .catch((e) => e.code);
        Object.assign(globalThis, { outcome, controller });
      },
      { apiUrl: home.url },
    );
    await vi.waitFor(() => expect([home.open, stuck.open]).toEqual([1, 1]), { timeout: 5_000 });
    expect(
      await page.evaluate(() => {
        const { controller, outcome } = globalThis as unknown as { controller: AbortController; outcome: unknown };
        controller.abort();
        return outcome;
      }),
    ).toBe("aborted");
    await vi.waitFor(() => expect([home.open, stuck.open]).toEqual([0, 0]));
    expect(home.reports).toEqual([]);
    const early = await page.evaluate(
      ({ apiUrl }) =>
        octet.verify({ apiUrl, sessionRef: "sess_abort", signal: AbortSignal.abort() }).catch(({ code }) => code),
      { apiUrl: home.url },
    );
    expect(early).toBe("aborted");
    expect(home.digests).toHaveLength(1);
  });

  test("ready measures early, and verify sends that once", async () => {
    const home = await edge();
    await openFor(home);
    const options: Options = { apiUrl: home.url, sessionRef: "sess_ready" };
    await page.evaluate((given) => octet.ready(given), options);
    expect([home.digests.length, home.reports.length]).toEqual([1, 0]);
    expect(await verify(options)).toEqual({ value: { ok: true } });
    expect([home.digests.length, home.reports.length]).toEqual([1, 1]);
    expect(home.reports[0]?.report).toMatchObject({ timing: { pings: 20 }, end: "done" });
    expect(await verify({ ...options, mode: "lite" })).toEqual({ value: { ok: true } });
    expect([home.digests.length, home.reports.length]).toEqual([2, 2]);
  });

  test("a ready that gave up does not take verify along", async () => {
    const home = await edge({ delayMs: 20 });
    await openFor(home);
    const outcome = await page.evaluate(async (apiUrl) => {
      const controller = new AbortController();
      const given = { apiUrl, sessionRef: "sess_gave_up" };
      const early = octet.ready({ ...given, signal: controller.signal }).catch(({ code }) => code);
      const late = octet.verify(given);
      controller.abort();
      return [await early, await late];
    }, home.url);
    expect(outcome).toEqual(["aborted", { ok: true }]);
    expect(home.reports).toHaveLength(1);
  });

  test("a page that is not secure is refused at once", async () => {
    const home = await edge();
    await open({ connect: "*" }, pages.url.replace("127.0.0.1", "example.test"));
    expect(await page.evaluate(() => isSecureContext)).toBe(false);
    const refused = { code: "insecure_context", message: expect.stringContaining("https") };
    expect(await verify({ apiUrl: home.url, sessionRef: "sess_plain" })).toMatchObject(refused);
    expect([home.digests, home.pings, home.reports]).toEqual([[], [], []]);
  });

  test("options that are wrong are refused by name", async () => {
    await open({});
    expect(await verify({ apiUrl: "/", sessionRef: "a b" })).toMatchObject({
      code: "invalid_options",
      message: expect.stringContaining("sessionRef"),
    });
  });

  test("the edge's refusal is the error's code; no edge at all is of the network", async () => {
    const taken = await edge({ answer: { status: 409, body: '{"error":"session_reported"}' } });
    const foreign = await edge({ answer: { status: 200, body: "<!doctype html>" } });
    await openFor(taken, foreign);
    const report = (apiUrl: string): Promise<Outcome> => verify({ apiUrl, sessionRef: "sess", mode: "passive" });
    expect(await report(taken.url)).toMatchObject({ code: "session_reported", status: 409 });
    expect(await report(foreign.url)).toMatchObject({ code: "network", status: 200 });
    await foreign.close();
    edges.pop();
    expect(await report(foreign.url)).toMatchObject({ code: "network" });
  });

  test("the browser takes the script by its published integrity, and by no other", async () => {
    expect(readFileSync(join(folder, "octet-collector.js.sri"), "utf8")).toBe(`${integrity}\n`);
    await open({});
    expect(await page.evaluate(() => Object.keys(octet).sort())).toEqual(["ready", "verify"]);
    await open({ sri: `sha384-${createHash("sha384").update("something else").digest("base64")}` });
    expect(await page.evaluate(() => typeof globalThis.octet)).toBe("undefined");
  });
});

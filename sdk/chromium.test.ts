import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startFakeMesh } from "./testing/fake-mesh.ts";

// A machine without the browser skips these: nothing else of the tests needs one.
const executablePath = [
  process.env.CHROMIUM_PATH ?? "",
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
].find((path) => path !== "" && existsSync(path));

declare global {
  /** In the page: the bundle. */
  var sdk: typeof import("./browser.ts");
}

const html = `<!doctype html><title>page</title>
<script type="module">import * as sdk from "/browser.js"; globalThis.sdk = sdk;</script>`;

describe.skipIf(executablePath === undefined)("in Chromium, from a page of another origin", () => {
  let browser: Browser;
  let pages: Server;
  let origin: string;
  let page: Page;

  beforeAll(async () => {
    const { buildSdk } = await import(fileURLToPath(new URL("build.mjs", import.meta.url)));
    await buildSdk({ log: () => {} });
    const bundle = await readFile(fileURLToPath(new URL("dist/browser.js", import.meta.url)));
    pages = createServer((request, response) => {
      if (request.url === "/browser.js") response.writeHead(200, { "content-type": "text/javascript" }).end(bundle);
      else response.writeHead(200, { "content-type": "text/html" }).end(html);
    });
    await new Promise<void>((resolve) => pages.listen(0, "127.0.0.1", resolve));
    origin = `http://127.0.0.1:${(pages.address() as AddressInfo).port}`;
    browser = await chromium.launch({
      executablePath,
      args: process.getuid?.() === 0 ? ["--no-sandbox"] : [],
    });
    page = await browser.newPage();
    await page.goto(origin);
    await page.waitForFunction(() => globalThis.sdk !== undefined);
  });
  afterAll(async () => {
    await browser?.close();
    await new Promise((resolve) => pages.close(resolve));
  });

  test.each(["connect", "grpc-web"] as const)(
    "a read token lists and is refused with a reason, by %s",
    async (protocol) => {
      const mesh = await startFakeMesh({ allowedOrigin: origin });
      const outcome = await page.evaluate(
        async ({ baseUrl, protocol }) => {
          const clients = (token: string, format: "binary" | "json") =>
            sdk.createClients({ baseUrl, protocol, format, credential: sdk.readToken(token) });
          const binary = await clients("edg_read_x", "binary").models.listModels({});
          const json = await clients("edg_read_x", "json").models.listModels({});
          const error = await clients("edg_test_narrow", "binary")
            .models.listModels({})
            .catch((thrown: unknown) => thrown);
          return {
            names: [...binary.models, ...json.models].map(({ name }) => name),
            reason: sdk.reasonOf(error),
            facts: sdk.factsOf(error),
          };
        },
        { baseUrl: mesh.url, protocol },
      );
      await mesh.close();
      expect(outcome).toEqual({ names: ["vad", "vad"], reason: "SCOPE_MISSING", facts: { scope: "models:read" } });
    },
  );

  test("a device keeps its registration and its models over a reload", async () => {
    const mesh = await startFakeMesh({ allowedOrigin: origin });
    const one = mesh.publish({ version: "1.0.0", bytes: randomBytes(500_000) });
    mesh.setDesired(one);
    mesh.faults.cutDownloads = [100_000];
    const run = (bootstrapToken?: string) =>
      page.evaluate(
        async ({ baseUrl, bootstrapToken }) => {
          const device = sdk.createDeviceClient({
            baseUrl,
            deviceIdentifier: "tab-1",
            bootstrapToken,
            store: sdk.indexedDbStore(),
            artifacts: sdk.memoryArtifacts(sdk.cacheStorage()),
          });
          const modes: string[] = [];
          device.on("connection", ({ mode }) => modes.push(mode));
          await device.start();
          while (device.model("vad") === undefined || modes.length === 0) await new Promise((go) => setTimeout(go, 10));
          const bytes = await device.open("vad");
          const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", new Uint8Array(bytes)));
          await device.close();
          return {
            id: device.deviceId,
            sha256: Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join(""),
            modes,
          };
        },
        { baseUrl: mesh.url, bootstrapToken },
      );
    const first = await run(mesh.mintBootstrapToken());
    expect(first).toEqual({ id: mesh.device("tab-1")?.id, sha256: one.sha256, modes: ["stream"] });
    expect(mesh.ranges).toEqual([undefined, expect.stringMatching(/^bytes=\d+-$/)]);
    await page.reload();
    await page.waitForFunction(() => globalThis.sdk !== undefined);
    const second = await run();
    expect(second).toEqual(first);
    expect(mesh.calls("register")).toBe(1);
    expect(mesh.calls("download")).toBe(2);
    await mesh.close();
  });

  test("a mesh that does not allow the page's origin is out of reach", async () => {
    const mesh = await startFakeMesh();
    const code = await page.evaluate(async (baseUrl) => {
      const mesh = sdk.createClients({ baseUrl, credential: sdk.readToken("edg_read_x"), retry: false });
      const error = await mesh.models.listModels({}).catch((thrown: { code?: number }) => thrown);
      return (error as { code?: number }).code;
    }, mesh.url);
    await mesh.close();
    expect(code).toBe(14);
  });
});

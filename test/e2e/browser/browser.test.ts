import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { apiKey, bearer, createClients } from "@octomesh/sdk";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { chromiumPath, startBrowser } from "../../../launcher/demo/browser.ts";
import { type StartedMesh, startMesh } from "../../start-mesh.ts";

const bundle = fileURLToPath(new URL("../../../sdk/dist/browser.js", import.meta.url));

let mesh: StartedMesh;
let browser: Browser;
let allowed: Server;
let foreign: Server;
let readTokenId: string;
let token: string;
let owner: ReturnType<typeof createClients>;

/** Serves one empty page and the bundle on an origin of its own. */
async function servePage(): Promise<Server> {
  const script = await readFile(bundle);
  const server = createServer((request, response) => {
    if (request.url === "/sdk.js") response.setHeader("content-type", "text/javascript").end(script);
    else
      response
        .setHeader("content-type", "text/html")
        .end(
          '<!doctype html><title>page</title><script type="module">import * as sdk from "/sdk.js"; globalThis.sdk = sdk;</script>',
        );
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server;
}

function originOf(server: Server): string {
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** What a page on that origin gets. */
async function readFromPage(server: Server, options: { protocol: "connect" | "grpc-web"; format: "binary" | "json" }) {
  const page = await browser.newPage();
  try {
    await page.goto(originOf(server));
    await page.waitForFunction("globalThis.sdk !== undefined");
    return await page.evaluate(
      async ({ baseUrl, token, options }) => {
        const { sdk } = globalThis as unknown as { sdk: typeof import("@octomesh/sdk/browser") };
        const clients = sdk.createClients({
          baseUrl,
          credential: sdk.readToken(token),
          retry: { maxAttempts: 1 },
          ...options,
        });
        try {
          const { models } = await clients.models.listModels({});
          const refused = await clients.models.createModel({ name: "by-page" }).then(
            () => "created",
            (error: unknown) => String(sdk.reasonOf(error)),
          );
          return { models: models.map((model) => model.name), refused };
        } catch (error) {
          return { error: String(sdk.reasonOf(error) ?? error) };
        } finally {
          clients.close();
        }
      },
      { baseUrl: mesh.publicUrl, token, options },
    );
  } finally {
    await page.close();
  }
}

describe.skipIf(!existsSync(chromiumPath))("a page in Chromium", () => {
  beforeAll(async () => {
    [allowed, foreign] = await Promise.all([servePage(), servePage()]);
    mesh = await startMesh({ OCTOMESH_CORS_ORIGINS: originOf(allowed) });
    const anonymous = createClients({ baseUrl: mesh.publicUrl });
    const setupCode = (await readFile(join(mesh.stateDir, "secrets/set-up-code"), "utf8")).trim();
    const { session } = await anonymous.organizations.setUpOrganization({
      setupCode,
      displayName: "Acme",
      ownerEmail: "owner@example.com",
    });
    anonymous.close();
    owner = createClients({ baseUrl: mesh.publicUrl, credential: bearer(session?.accessToken ?? "") });
    const key = await owner.apiKeys.createApiKey({
      name: "pages",
      scopes: [Scope.MODELS_READ, Scope.MODELS_WRITE, Scope.ORG_READ],
    });
    const backend = createClients({ baseUrl: mesh.publicUrl, credential: apiKey(key.apiKey) });
    await backend.models.createModel({ name: "voice-activity" });
    const made = await backend.readTokens.createReadToken({ scopes: [Scope.MODELS_READ] });
    backend.close();
    readTokenId = made.id;
    token = made.token;
    const started = await startBrowser();
    if (started === undefined) throw new Error(`there is no Chromium at ${chromiumPath}`);
    browser = started;
  }, 120_000);

  afterAll(async () => {
    await browser?.close();
    owner?.close();
    await mesh?.stop();
    allowed?.close();
    foreign?.close();
  });

  test.each([
    { protocol: "connect", format: "binary" },
    { protocol: "connect", format: "json" },
    { protocol: "grpc-web", format: "binary" },
    { protocol: "grpc-web", format: "json" },
  ] as const)("reads with its token over $protocol, $format, and may not write", async (options) => {
    expect(await readFromPage(allowed, options)).toEqual({
      models: ["voice-activity"],
      refused: "CALLER_KIND_NOT_ALLOWED",
    });
  });

  test("from an origin that is not on the list reads nothing", async () => {
    const found = await readFromPage(foreign, { protocol: "connect", format: "binary" });
    expect(found).toHaveProperty("error");
    expect(found.models).toBeUndefined();
  });

  test("reads nothing once its token is revoked", async () => {
    await owner.readTokens.revokeReadToken({ id: readTokenId });
    const found = await readFromPage(allowed, { protocol: "grpc-web", format: "binary" });
    expect(found).toEqual({ error: "CREDENTIAL_REVOKED" });
  });
});

import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { beforeAll, expect, test } from "vitest";
import { startFakeMesh } from "./testing/fake-mesh.ts";
import { until } from "./testing/until.ts";

const at = (name: string) => fileURLToPath(new URL(name, import.meta.url));

beforeAll(async () => {
  const { buildSdk } = await import(at("build.mjs"));
  await buildSdk({ log: () => {} });
});

test("the browser bundle is one file that needs nothing of Node", async () => {
  const code = await readFile(at("dist/browser.js"), "utf8");
  expect(code).not.toMatch(/(from|import)\s*\(?["']/);
  expect(code).not.toMatch(/["']node:/);
  expect(code).not.toMatch(/\brequire\(/);
});

test("the browser bundle and the Node bundle export the same, save for what only one platform has", async () => {
  const node = new Set(Object.keys(await import(at("dist/index.js"))));
  const browser = new Set(Object.keys(await import(at("dist/browser.js"))));
  // Verdict tokens are a backend's affair: what a browser verifies, its user decides.
  expect([...node].filter((name) => !browser.has(name)).sort()).toEqual([
    "VerdictTokenError",
    "acquireLockFile",
    "directoryArtifacts",
    "fileStore",
    "fileTelemetry",
    "keyringStore",
    "verdictKeys",
    "verifyVerdict",
    "withLockFile",
  ]);
  expect([...browser].filter((name) => !node.has(name))).toEqual(["indexedDbStore"]);
});

test.each(["connect", "grpc-web"] as const)(
  "the browser bundle is a device over fetch and WebCrypto, by %s",
  async (protocol) => {
    const sdk: typeof import("./browser.ts") = await import(at("dist/browser.js"));
    const mesh = await startFakeMesh();
    const version = mesh.publish({ version: "1.0.0", bytes: randomBytes(100_000) });
    mesh.setDesired(version);
    mesh.faults.cutDownloads = [40_000];
    const client = sdk.createDeviceClient({
      baseUrl: mesh.url,
      deviceIdentifier: "tab-1",
      bootstrapToken: mesh.mintBootstrapToken(),
      store: sdk.memoryStore(),
      protocol,
    });
    try {
      await client.start();
      await until(() => client.model("vad") !== undefined, "the model");
      expect(Buffer.from(await client.open("vad")).equals(Buffer.from(version.bytes))).toBe(true);
      expect(mesh.ranges).toEqual([undefined, "bytes=40000-"]);
      const models = sdk.createClients({ baseUrl: mesh.url, credential: sdk.readToken("edg_read_x"), protocol });
      expect((await models.models.listModels({})).models).toHaveLength(1);
      const narrow = sdk.createClients({ baseUrl: mesh.url, credential: sdk.readToken("edg_test_narrow"), protocol });
      const error = await narrow.models.listModels({}).catch((thrown: unknown) => thrown);
      expect(sdk.reasonOf(error)).toBe("SCOPE_MISSING");
    } finally {
      await client.close();
      await mesh.close();
    }
  },
);

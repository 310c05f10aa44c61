import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";

const folders: string[] = [];

afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

async function build(): Promise<{ folder: string; built: { integrity: string; gzipBytes: Record<string, number> } }> {
  const { buildCollector } = await import(fileURLToPath(new URL("build.mjs", import.meta.url)));
  const folder = mkdtempSync(join(tmpdir(), "collector-"));
  folders.push(folder);
  return { folder, built: await buildCollector({ log: () => {}, outDir: folder }) };
}

test("the same sources give the same bytes", async () => {
  const [one, two] = [await build(), await build()];
  expect(one.built).toEqual(two.built);
  expect(readdirSync(one.folder).sort()).toEqual([
    "octet-collector.js",
    "octet-collector.js.sri",
    "octet-collector.mjs",
  ]);
  for (const name of readdirSync(one.folder)) {
    expect(readFileSync(join(one.folder, name))).toEqual(readFileSync(join(two.folder, name)));
  }
});

test("the bundles are small, carry their licence, and hold nothing that a strict policy forbids", async () => {
  const { folder, built } = await build();
  for (const size of Object.values(built.gzipBytes)) expect(size).toBeLessThan(12 * 1024);
  for (const name of ["octet-collector.js", "octet-collector.mjs"]) {
    const code = readFileSync(join(folder, name), "utf8");
    expect(code.split("\n")[0]).toContain("SPDX-License-Identifier: Apache-2.0");
    expect(code).not.toMatch(/\beval\b|\bFunction\(|\bWorker\b|\bBlob\b|\brequire\(|\bimport\(/);
    expect(code).not.toMatch(/localStorage|sessionStorage|indexedDB|\bcaches\b|\bcookie\b|canvas|geolocation/);
  }
});

// Builds what pages load: `node services/edge-relay/collector/build.mjs`.
//
//   dist/octet-collector.js       script tag, global `octet`
//   dist/octet-collector.mjs      ES module
//   dist/octet-collector.js.sri   integrity of the script, for the tag's `integrity`
import { createHash } from "node:crypto";
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";

const collector = dirname(fileURLToPath(import.meta.url));

/** Bytes of each bundle when gzipped: it must have fewer. */
export const maxGzipBytes = 12 * 1024;

/**
 * Builds the collector into `outDir`. The same sources give the same bytes. `log` gets one line for each bundle. Returns
 * the script's integrity, and the gzipped size of both in bytes. Throws where a source does not compile, where one
 * imports what is not in this folder, and where a bundle is too large.
 */
export async function buildCollector({ log = console.log, outDir = join(collector, "dist") } = {}) {
  const { build } = await import("esbuild");
  const bundle = async (name, format) => {
    const { outputFiles, metafile } = await build({
      entryPoints: [join(collector, "octet-collector.ts")],
      absWorkingDir: collector,
      outfile: name,
      bundle: true,
      write: false,
      metafile: true,
      minify: true,
      charset: "ascii",
      platform: "browser",
      target: "es2020",
      format,
      ...(format === "iife" ? { globalName: "octet" } : {}),
      banner: { js: "/*! octet collector, part of Octomesh. SPDX-License-Identifier: Apache-2.0 */" },
      legalComments: "none",
      logLevel: "silent",
    });
    const foreign = Object.keys(metafile.inputs).filter((path) => path.includes("/") || !path.endsWith(".ts"));
    if (foreign.length > 0) throw new Error(`the collector imports what is not its own: ${foreign.join(", ")}`);
    const bytes = Buffer.from(outputFiles[0].contents);
    const gzipBytes = gzipSync(bytes, { level: 9 }).length;
    log(`${name}  ${kilobytes(bytes.length)} (${kilobytes(gzipBytes)} gzipped)`);
    if (gzipBytes >= maxGzipBytes) throw new Error(`${name} has ${gzipBytes} bytes gzipped, not under ${maxGzipBytes}`);
    return { name, bytes, gzipBytes };
  };
  const script = await bundle("octet-collector.js", "iife");
  const module = await bundle("octet-collector.mjs", "esm");
  const integrity = `sha384-${createHash("sha384").update(script.bytes).digest("base64")}`;
  mkdirSync(outDir, { recursive: true });
  put(join(outDir, script.name), script.bytes);
  put(join(outDir, module.name), module.bytes);
  put(join(outDir, `${script.name}.sri`), `${integrity}\n`);
  return { integrity, gzipBytes: { script: script.gzipBytes, module: module.gzipBytes } };
}

/** Whoever reads it meanwhile, or builds it too, finds a whole file. */
function put(path, content) {
  const temporary = `${path}.${process.pid}`;
  writeFileSync(temporary, content);
  renameSync(temporary, path);
}

function kilobytes(bytes) {
  return `${(bytes / 1000).toFixed(1)} kB`;
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(resolve(process.argv[1])).href) {
  await buildCollector();
}

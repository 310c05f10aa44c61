// Builds what the package publishes: `node sdk/build.mjs`. Does nothing where the inputs are those of the last build.
//
//   dist/index.js       Node, ESM; libraries stay imports, generated code is inside
//   dist/browser.js     browsers, ESM, one self-contained minified file
//   dist/proto/**       the contract's messages and enums, for `@octomesh/sdk/proto/…`
//   dist/types/**       declarations of all of it
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";

const sdk = dirname(fileURLToPath(import.meta.url));
const root = resolve(sdk, "..");
const dist = join(sdk, "dist");
const stamp = join(root, ".cache", "sdk-build");
const lock = `${stamp}.lock`;
/** A lock that is older belongs to a build that was killed. */
const staleMs = 120_000;
const outputs = ["index.js", "browser.js", "types/index.d.ts", "types/browser.d.ts"].map((name) => join(dist, name));

/**
 * Builds the SDK, unless it was built from the same inputs already. `log` gets one line for each output. Throws where the
 * sources do not compile, or where the browser bundle would need a module of Node.
 */
export async function buildSdk({ log = console.log } = {}) {
  mkdirSync(dirname(stamp), { recursive: true });
  await takeLock();
  try {
    await buildUnlessBuilt(log);
  } finally {
    rmdirSync(lock);
  }
}

/** Processes that build at the same time take turns; whoever comes second finds everything built. */
async function takeLock() {
  for (;;) {
    try {
      mkdirSync(lock);
      return;
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
    }
    try {
      if (Date.now() - statSync(lock).mtimeMs > staleMs) rmdirSync(lock);
    } catch {
      // Somebody else gave it back, or took it away, in the meantime.
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function buildUnlessBuilt(log) {
  const digest = digestOf([
    ...filesBelow(
      sdk,
      (path) => /\.(ts|mjs|json)$/.test(path) && !/\.test\.ts$|\/(dist|testing|node_modules)\//.test(path),
    ),
    ...filesBelow(join(root, "proto", "gen"), () => true),
    join(root, "tsconfig.json"),
    join(root, "package-lock.json"),
  ]);
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === digest && outputs.every((path) => existsSync(path))) return;
  const { build } = await import("esbuild");
  rmSync(dist, { recursive: true, force: true });
  const shared = { bundle: true, format: "esm", absWorkingDir: root, logLevel: "silent", legalComments: "none" };
  await build({
    ...shared,
    entryPoints: [join(sdk, "index.ts")],
    outfile: join(dist, "index.js"),
    platform: "node",
    target: "node20",
    external: ["@bufbuild/*", "@connectrpc/*", "@napi-rs/keyring", "jose"],
  });
  const browser = await build({
    ...shared,
    entryPoints: [join(sdk, "browser.ts")],
    outfile: join(dist, "browser.js"),
    platform: "browser",
    target: "es2022",
    minify: true,
    metafile: true,
  });
  const foreign = Object.keys(browser.metafile.inputs).filter((path) => /(^|[:/])node:|platform\/node\.ts$/.test(path));
  if (foreign.length > 0) throw new Error(`the browser bundle needs what browsers lack: ${foreign.join(", ")}`);
  cpSync(join(root, "proto", "gen"), join(dist, "proto"), {
    recursive: true,
    filter: (path) => !path.endsWith(".d.ts"),
  });
  emitDeclarations();
  writeFileSync(stamp, digest);
  for (const name of ["index.js", "browser.js"]) {
    const bytes = readFileSync(join(dist, name));
    log(`sdk/dist/${name}  ${kilobytes(bytes.length)} (${kilobytes(gzipSync(bytes).length)} gzipped)`);
  }
}

function emitDeclarations() {
  const compiler = join(root, "node_modules", "typescript", "bin", "tsc");
  const run = spawnSync(process.execPath, [compiler, "-p", join(sdk, "tsconfig.build.json")], { encoding: "utf8" });
  if (run.status !== 0) throw new Error(`the SDK's declarations do not compile:\n${run.stdout}${run.stderr}`);
  // The contract's package is not published by itself: its declarations go along, and are named by path.
  const types = join(dist, "types");
  cpSync(join(root, "proto", "gen"), join(types, "proto"), {
    recursive: true,
    filter: (path) => !path.endsWith(".js"),
  });
  for (const path of filesBelow(types, (name) => name.endsWith(".d.ts"))) {
    const text = readFileSync(path, "utf8");
    const up = relative(dirname(path), join(types, "proto")).replaceAll("\\", "/") || ".";
    const named = text
      .replace(/(["'])@octomesh\/proto\/([^"']+)\1/g, (_, quote, file) => `${quote}${dotted(up)}/${file}.js${quote}`)
      .replace(/((?:from|import\()\s*["']\.[^"']*)\.ts(["'])/g, "$1.js$2");
    if (named !== text) writeFileSync(path, named);
  }
}

function dotted(path) {
  return path.startsWith(".") ? path : `./${path}`;
}

function kilobytes(bytes) {
  return `${(bytes / 1000).toFixed(1)} kB`;
}

function digestOf(paths) {
  const hash = createHash("sha256");
  for (const path of paths.sort())
    hash
      .update(`${relative(root, path)}\0`)
      .update(readFileSync(path))
      .update("\0");
  return hash.digest("hex");
}

function filesBelow(folder, isWanted) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory())
      return ["dist", "node_modules"].includes(entry.name) && folder === sdk ? [] : filesBelow(path, isWanted);
    return isWanted(path) ? [path] : [];
  });
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(resolve(process.argv[1])).href) await buildSdk();

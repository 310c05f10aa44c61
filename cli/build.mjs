// Bundles the command into dist/octomil.js, and says whether that bundle is current.
//
//   node build.mjs          builds if anything changed since the last build
//   node build.mjs --fresh  exits with 0 if the bundle is current, with 1 if it is not; builds nothing
//
// The bundle is known by the SHA-256 of everything that went into it (names and contents of its inputs, as the bundler
// reported them), so an edit, a checkout of another commit or a newer dependency is noticed and nothing else is.
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const folder = dirname(fileURLToPath(import.meta.url));
const root = resolve(folder, "..");
const bundle = join(folder, "dist/octomil.js");
const record = join(folder, "dist/octomil.inputs.json");

/** Whether the bundle is there and made of what the files hold now. */
export async function isFresh() {
  let known;
  try {
    known = JSON.parse(await readFile(record, "utf8"));
    if (known.bundle !== digest(await readFile(bundle))) return false;
  } catch {
    return false;
  }
  return known.inputs === (await digestInputs(known.files));
}

/** Builds the bundle if it is not current. Answers its path. */
export async function buildCli() {
  if (await isFresh()) return bundle;
  await ensureContract();
  const { build } = await import("esbuild");
  const result = await build({
    absWorkingDir: root,
    entryPoints: [join(folder, "octomil.ts")],
    bundle: true,
    platform: "node",
    target: "node20",
    format: "esm",
    write: false,
    metafile: true,
    legalComments: "inline",
    logLevel: "error",
    // An optional package of some platforms' key stores: found at run time where it is installed.
    external: ["@napi-rs/keyring"],
    // Dependencies in CommonJS call require for Node's own modules.
    banner: {
      js: 'import { createRequire as octomilRequire } from "node:module"; const require = octomilRequire(import.meta.url);',
    },
    outfile: bundle,
  });
  const output = result.outputFiles[0].contents;
  const files = Object.keys(result.metafile.inputs).sort();
  await replace(bundle, output);
  const facts = { bundle: digest(output), inputs: await digestInputs(files), files };
  await replace(record, `${JSON.stringify(facts, null, 1)}\n`);
  return bundle;
}

/** Generates the contract's code where a checkout does not have it yet. */
async function ensureContract() {
  const generator = join(root, "tools/generate.mjs");
  if (!existsSync(generator)) return;
  const { generate } = await import(pathToFileURL(generator).href);
  generate();
}

async function digestInputs(files) {
  const hash = createHash("sha256");
  for (const file of files) {
    hash.update(`${relative(root, resolve(root, file))}\0`);
    hash.update(digest(await readFile(resolve(root, file)).catch(() => Buffer.from("absent"))));
  }
  return hash.digest("hex");
}

// Two commands may build at once: each writes aside and renames, and the last one wins with a whole file.
async function replace(path, content) {
  const aside = `${path}.${process.pid}`;
  try {
    // Somebody may have cleaned up since the build began.
    await mkdir(dirname(path), { recursive: true });
    await writeFile(aside, content);
    await rename(aside, path);
  } finally {
    await rm(aside, { force: true });
  }
}

function digest(bytes) {
  return createHash("sha256").update(bytes).digest("hex");
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  if (process.argv.includes("--fresh")) process.exitCode = (await isFresh()) ? 0 : 1;
  else await buildCli();
}

// Generates TypeScript from the contract, when the contract or the generator changed since the last time.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const stamp = join(root, ".cache/generate.sha256");

/** Generates if needed. Throws with the generator's own words where it fails. */
export function generate() {
  const digest = digestOfInputs();
  const known = existsSync(stamp) ? readFileSync(stamp, "utf8") : "";
  if (known === digest && existsSync(join(root, "proto/gen/octomesh"))) return false;
  const result = spawnSync(bin("buf"), ["generate"], { cwd: root, encoding: "utf8" });
  if (result.status !== 0) {
    throw new Error(`buf generate failed:\n${result.stderr ?? ""}${result.error?.message ?? ""}`);
  }
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, digest);
  return true;
}

/** Path of a command that a package installed. */
export function bin(name) {
  return join(root, "node_modules/.bin", name);
}

function digestOfInputs() {
  const hash = createHash("sha256");
  const files = ["buf.gen.yaml", "buf.yaml", "node_modules/@bufbuild/protoc-gen-es/package.json"];
  for (const folder of ["proto/octomesh", "third_party/proto"]) files.push(...protosIn(join(root, folder)));
  for (const file of files.sort()) {
    hash
      .update(`${file}\0`)
      .update(readFileSync(join(root, file)))
      .update("\0");
  }
  return hash.digest("hex");
}

function protosIn(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(".proto"))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));
}

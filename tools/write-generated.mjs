// Writes a generated file that is committed, or checks it.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

/**
 * Writes `text` to a path in the repository. With `--check` on the command line it writes nothing, and the process exits
 * with 1 where the file holds something else.
 */
export function writeGenerated(path, text) {
  const file = fileURLToPath(new URL(`../${path}`, import.meta.url));
  if (!process.argv.includes("--check")) {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
    console.log(`wrote ${path}`);
    return;
  }
  let held;
  try {
    held = readFileSync(file, "utf8");
  } catch {
    held = undefined;
  }
  if (held === text) {
    console.log(`${path} is up to date`);
    return;
  }
  const at = held === undefined ? "it does not exist" : `line ${firstDifference(held, text)} differs`;
  const tool = process.argv[1]?.split(/[\\/]/).at(-1) ?? "";
  console.error(`${path} is not what proto/ says (${at}): run \`node tools/${tool}\` and commit the result`);
  process.exitCode = 1;
}

function firstDifference(held, text) {
  const lines = text.split("\n");
  const index = held.split("\n").findIndex((line, number) => line !== lines[number]);
  return index === -1 ? lines.length : index + 1;
}

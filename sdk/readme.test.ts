import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { beforeAll, expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));

beforeAll(async () => {
  const { buildSdk } = await import(fileURLToPath(new URL("build.mjs", import.meta.url)));
  await buildSdk({ log: () => {} });
});

test("every example of the README compiles against what is published", async () => {
  const text = await readFile(join(root, "sdk", "README.md"), "utf8");
  const examples = [...text.matchAll(/```ts\n(.*?)```/gs)].map((match) => match[1] as string);
  expect(examples.length).toBeGreaterThanOrEqual(5);
  await mkdir(join(root, ".cache"), { recursive: true });
  const folder = await mkdtemp(join(root, ".cache", "readme-"));
  try {
    await Promise.all(examples.map((code, index) => writeFile(join(folder, `example-${index}.mts`), code)));
    await writeFile(
      join(folder, "tsconfig.json"),
      JSON.stringify({
        extends: "../../tsconfig.json",
        // Without the libraries' declarations left out: what is published must be sound by itself.
        compilerOptions: { skipLibCheck: false, customConditions: [] },
        include: ["*.mts"],
        exclude: [],
      }),
    );
    const compiler = join(root, "node_modules", "typescript", "bin", "tsc");
    const run = promisify(execFile)(process.execPath, [compiler, "-p", folder], { cwd: root });
    const { stdout } = await run.catch((error: { stdout: string }) => error);
    expect(stdout).toBe("");
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

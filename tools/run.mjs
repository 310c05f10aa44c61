// The commands of package.json. Each first makes what it needs and does not find: nothing depends on an install script.
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { bin, generate } from "./generate.mjs";
import { hostingNetworks } from "./hosting-networks.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const [command = "help", ...args] = process.argv.slice(2);

const commands = { start, demo, test, check, bench, generate: onlyGenerate };
const run = commands[command];
if (run === undefined) {
  process.stderr.write(`usage: node tools/run.mjs ${Object.keys(commands).join("|")} [arguments]\n`);
  process.exit(2);
}
try {
  process.exitCode = await run();
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 1;
}

async function onlyGenerate() {
  process.stdout.write(generate() ? "generated\n" : "up to date\n");
  return 0;
}

async function start() {
  generate();
  await build();
  return typescript("launcher/start.ts", args);
}

async function demo() {
  generate();
  await build();
  return typescript("launcher/demo/main.ts", args);
}

async function bench() {
  generate();
  await build();
  const [name, ...rest] = args;
  const names = existsSync(join(root, "bench"))
    ? readdirSync(join(root, "bench")).flatMap((file) => /^([\w-]+)\.bench\.ts$/.exec(file)?.[1] ?? [])
    : [];
  if (name === undefined || !names.includes(name)) {
    process.stderr.write(`usage: npm run bench -- NAME [--json]\nbenchmarks: ${names.join(", ") || "none yet"}\n`);
    return 2;
  }
  return typescript(`bench/${name}.bench.ts`, rest);
}

/**
 * Runs the tests and ends with one plain line of counts. Whole stories come after everything else and one at a time, so
 * that what they promise within seconds is not put off by neighbours. Under CI=true a skipped test is a failure.
 */
async function test() {
  generate();
  await build();
  const stories = "test/e2e/**";
  const runs =
    args.length > 0
      ? [args]
      : [
          ["--exclude", stories],
          ["test/e2e/", "--no-file-parallelism"],
        ];
  const total = { passed: 0, failed: 0, skipped: 0 };
  let isFailure = false;
  for (const flags of runs) {
    const { code, passed, failed, skipped } = await runTests(flags);
    total.passed += passed;
    total.failed += failed;
    total.skipped += skipped;
    if (code !== 0) isFailure = true;
  }
  if (isFailure && total.failed === 0) total.failed = 1;
  if (process.env.CI === "true" && total.skipped > 0) isFailure = true;
  process.stdout.write(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`);
  return isFailure || total.failed > 0 ? 1 : 0;
}

/** One run of the test runner, and what it counted. */
async function runTests(flags) {
  const report = join(root, ".cache/test.json");
  mkdirSync(dirname(report), { recursive: true });
  rmSync(report, { force: true });
  const reporters = ["--reporter=default", "--reporter=json", `--outputFile.json=${report}`];
  const code = await exec(process.execPath, [
    join(root, "node_modules/vitest/vitest.mjs"),
    "run",
    ...reporters,
    ...flags,
  ]);
  if (!existsSync(report)) return { code: code === 0 ? 1 : code, passed: 0, failed: 1, skipped: 0 };
  const { numPassedTests, numFailedTests, numPendingTests, numTodoTests, testResults } = JSON.parse(
    readFileSync(report, "utf8"),
  );
  // A file that could not be loaded holds no test, and is a failure all the same.
  const broken = testResults.filter((file) => file.status === "failed" && file.assertionResults.length === 0).length;
  return { code, passed: numPassedTests, failed: numFailedTests + broken, skipped: numPendingTests + numTodoTests };
}

/** Format, lint, types, contract, and generated documents that must not differ. */
async function check() {
  generate();
  const steps = [
    ["biome", [bin("biome"), "ci", "--error-on-warnings", "."]],
    ["types", [bin("tsc"), "--noEmit", "-p", "tsconfig.json"]],
    ["buf format", [bin("buf"), "format", "--diff", "--exit-code", "proto"]],
    ["buf lint", [bin("buf"), "lint", "proto"]],
    ["buf breaking", [bin("buf"), "breaking", "proto", "--against", "proto/baseline.binpb"]],
    ["docs/policy.md", [process.execPath, "tools/policy-docs.mjs", "--check"]],
    ["docs/openapi.json", [process.execPath, "tools/openapi.mjs", "--check"]],
    ["docs/configuration.md", [process.execPath, "--import", "tsx", "tools/configuration-docs.ts", "--check"]],
  ];
  let failed = 0;
  for (const [name, [file, ...rest]] of steps) {
    const code = await exec(file, rest);
    process.stdout.write(`${code === 0 ? "ok    " : "FAILED"} ${name}\n`);
    if (code !== 0) failed += 1;
  }
  return failed === 0 ? 0 : 1;
}

/** Makes the table of networks, and bundles what programs outside the source tree import: SDK, command and collector. */
async function build() {
  hostingNetworks();
  for (const script of ["sdk/build.mjs", "cli/build.mjs", "services/edge-relay/collector/build.mjs"]) {
    if (!existsSync(join(root, script))) continue;
    // What they say is no part of a benchmark's answer.
    const code = await exec(process.execPath, [script], ["inherit", 2, "inherit"]);
    if (code !== 0) throw new Error(`${script} failed`);
  }
}

function typescript(file, rest) {
  return exec(process.execPath, ["--import", "tsx", join(root, file), ...rest]);
}

/** Runs a command in the foreground; signals reach it too, and its exit code is ours. */
function exec(file, rest, stdio = "inherit") {
  return new Promise((resolve, reject) => {
    const child = spawn(file, rest, { cwd: root, stdio });
    // Ctrl-C reaches the whole group: the child ends by itself, and we wait for it.
    const ignore = () => undefined;
    const forward = () => child.kill("SIGTERM");
    process.on("SIGINT", ignore);
    process.on("SIGTERM", forward);
    child.once("error", reject);
    child.once("exit", (code, signal) => {
      process.off("SIGINT", ignore);
      process.off("SIGTERM", forward);
      resolve(signal === null ? (code ?? 1) : 1);
    });
  });
}

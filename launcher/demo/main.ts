import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openOutput } from "@octomesh/cli/output";
import { processTerminal } from "@octomesh/cli/terminal";
import { closingTables } from "./closing-tables.ts";
import { mainJob, runStep, type StepOutcome } from "./main-job.ts";
import { meshEnvironment } from "./mesh-environment.ts";
import { type MeshProcess, startMesh } from "./mesh-process.ts";
import { openNarrator } from "./narrator.ts";
import { octomilAt } from "./octomil-process.ts";
import { type DemoOptions, demoUsage, readDemoOptions } from "./options.ts";
import { createWorld, type World } from "./world.ts";

const terminal = processTerminal();
const narrator = openNarrator(terminal);

process.exit(await main());

async function main(): Promise<number> {
  let options: DemoOptions;
  try {
    options = readDemoOptions(process.argv.slice(2));
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : error}\n\n${demoUsage}`);
    return 2;
  }
  if (options.help) {
    process.stdout.write(demoUsage);
    return 0;
  }
  const folder = await mkdtemp(join(tmpdir(), "octomesh-demo-"));
  let mesh: MeshProcess | undefined;
  let world: World | undefined;
  try {
    narrator.print(`\n   ${narrator.paint.bold("Octomesh: the main job, end to end")}\n`);
    const at = await meshFor(options, join(folder, "state"));
    mesh = at.mesh;
    world = createWorld({
      url: at.url,
      edgeUrl: at.edgeUrl,
      setUpCode: at.code,
      deviceCount: options.devices,
      narrator,
      octomil: octomilAt(at.url, join(folder, "octomil")),
      signal: terminal.signal,
    });
    return await tell(world);
  } catch (error) {
    if (terminal.signal.aborted) {
      narrator.print("\n   Interrupted.");
      return 130;
    }
    narrator.verdict(false, error instanceof Error ? error.message : String(error));
    return 1;
  } finally {
    await world?.fleet?.close();
    world?.backend?.close();
    const failure = await mesh?.stop().then(
      () => undefined,
      (error: unknown) => error,
    );
    if (failure !== undefined) narrator.verdict(false, String(failure));
    if (options.keep) narrator.say(`State and profile are in ${folder}.`);
    else await rm(folder, { recursive: true, force: true });
    // A mesh that does not stop as it should fails the demonstration, whatever it returned before.
    if (failure !== undefined) process.exit(1);
  }
}

async function meshFor(options: DemoOptions, stateDir: string) {
  if (options.url !== undefined && options.code !== undefined) {
    narrator.say(`Using the mesh at ${options.url}.`);
    return { url: options.url, edgeUrl: options.edge, code: options.code, mesh: undefined };
  }
  const how = options.processes ? "one process for each service" : "one process";
  narrator.say(`Starting a mesh of six services (${how}) on an embedded PostgreSQL …`);
  const env = await meshEnvironment(options.devices);
  const mesh = await startMesh({ stateDir, processes: options.processes, env, signal: terminal.signal });
  narrator.verdict(true, `ready at ${mesh.url} after ${(mesh.readyMs / 1000).toFixed(1)} s`);
  return { url: mesh.url, edgeUrl: mesh.edgeUrl, code: mesh.setUpCode, mesh };
}

async function tell(world: World): Promise<number> {
  const begin = performance.now();
  const outcomes: StepOutcome[] = [];
  for (const [index, step] of mainJob.entries()) {
    narrator.chapter(index + 1, step.title);
    const outcome = await runStep(world, step);
    outcomes.push(outcome);
    // What failed may be what the next steps stand on: going on would only bury it.
    if (!outcome.ok) break;
  }
  const totalMs = performance.now() - begin;
  const output = openOutput(terminal);
  narrator.print(`\n${closingTables(world, outcomes, output, totalMs)}\n`);
  const failed = world.checks.filter(({ ok }) => !ok);
  const ok = failed.length === 0 && outcomes.length === mainJob.length;
  if (ok)
    narrator.verdict(true, `Everything is as it should be: ${world.checks.length} of ${world.checks.length} checks.`);
  else for (const { chapter, text } of failed) narrator.verdict(false, `${chapter}: ${text}`);
  return ok ? 0 : 1;
}

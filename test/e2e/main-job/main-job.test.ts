import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { mainJob, runStep } from "../../../launcher/demo/main-job.ts";
import { meshEnvironment } from "../../../launcher/demo/mesh-environment.ts";
import { type MeshProcess, startMesh } from "../../../launcher/demo/mesh-process.ts";
import { silentNarrator } from "../../../launcher/demo/narrator.ts";
import { octomilAt } from "../../../launcher/demo/octomil-process.ts";
import { createWorld, type World } from "../../../launcher/demo/world.ts";

const deviceCount = 40;
const stepTimeoutMs = 300_000;

describe.each([
  { mode: "in one process", processes: false },
  { mode: "as one process for each service", processes: true },
])("the main job, with the mesh $mode", ({ processes }) => {
  let folder: string;
  let mesh: MeshProcess | undefined;
  let world: World | undefined;
  let hasFailed = false;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "octomesh-main-job-"));
    mesh = await startMesh({
      stateDir: join(folder, "state"),
      processes,
      env: await meshEnvironment(deviceCount),
    });
    world = createWorld({
      url: mesh.url,
      edgeUrl: mesh.edgeUrl,
      setUpCode: mesh.setUpCode,
      deviceCount,
      narrator: silentNarrator(),
      octomil: octomilAt(mesh.url, join(folder, "octomil")),
      signal: new AbortController().signal,
    });
  }, 180_000);

  afterAll(async () => {
    await world?.fleet?.close();
    world?.backend?.close();
    await mesh?.stop();
    await rm(folder, { recursive: true, force: true });
  }, 60_000);

  for (const [index, step] of mainJob.entries()) {
    test(
      `${index + 1}. ${step.title}`,
      async () => {
        if (world === undefined) throw new Error("the mesh did not start");
        // Each step builds on those before it: after a failure the rest would only repeat it.
        if (hasFailed) throw new Error("an earlier step failed");
        const outcome = await runStep(world, step);
        hasFailed = !outcome.ok;
        const checks = world.checks.filter(({ chapter }) => chapter === step.title);
        expect(checks.filter(({ ok }) => !ok).map(({ text }) => text)).toEqual([]);
        expect(checks.length).toBeGreaterThan(0);
      },
      stepTimeoutMs,
    );
  }
});

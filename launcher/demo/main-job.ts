import { enrol } from "./step-enrol.ts";
import { judge } from "./step-judge.ts";
import { push } from "./step-push.ts";
import { revoke } from "./step-revoke.ts";
import { rollOut } from "./step-roll-out.ts";
import { setUp } from "./step-set-up.ts";
import { sumUp } from "./step-sum-up.ts";
import type { World } from "./world.ts";

/** One step of the main job. */
export interface Step {
  title: string;
  run(world: World): Promise<void>;
}

/** The steps of the main job, in order; each builds on those before it. */
export const mainJob: readonly Step[] = [
  { title: "Set up an organisation and its keys", run: setUp },
  { title: "Publish three versions of a model", run: push },
  { title: "Enrol a fleet", run: enrol },
  { title: "Roll out, by stages, and back", run: rollOut },
  { title: "Revoke a device", run: revoke },
  { title: "Judge a browser session", run: judge },
  { title: "What happened", run: sumUp },
];

/** What came of one step. */
export interface StepOutcome {
  title: string;
  durationMs: number;
  /** Everything that had to hold did, and nothing was thrown. */
  ok: boolean;
}

/** Runs one step. What it throws becomes a check that failed. */
export async function runStep(world: World, step: Step): Promise<StepOutcome> {
  const begin = performance.now();
  world.chapter = step.title;
  try {
    await step.run(world);
  } catch (error) {
    if (world.signal.aborted) throw error;
    world.check(false, error instanceof Error ? error.message : String(error));
  }
  const ok = world.checks.filter(({ chapter }) => chapter === step.title).every((check) => check.ok);
  return { title: step.title, durationMs: performance.now() - begin, ok };
}

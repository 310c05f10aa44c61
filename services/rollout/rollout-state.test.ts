import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Plan, type RolloutState, rolloutStates, type Stage } from "./rollout.ts";
import { type Action, activeStates, dueTimeOf, nextPosition, type Outcome, type Position } from "./rollout-state.ts";

const stage = (percentageThousandths: number, more: Partial<Stage> = {}): Stage => ({
  percentageThousandths,
  minDwellMs: 0,
  minSample: 0,
  approvalRequired: false,
  ...more,
});
const planOf = (...stages: Stage[]): Plan => ({ stages, controlThousandths: 0 });
const at = (state: RolloutState, percentageThousandths = 0, stageIndex = 0): Position => ({
  state,
  stageIndex,
  percentageThousandths,
  stageTimeMs: 0,
});
const one = planOf(stage(10_000));

function positionAfter(outcome: Outcome): Position {
  if (outcome.kind !== "moved") throw new Error(`expected a move, not ${JSON.stringify(outcome)}`);
  return outcome.position;
}

describe("a rollout's state machine", () => {
  it("runs through the life of a single percentage: start, grow, pause, resume, complete", () => {
    let position = at("draft");
    const states: string[] = [];
    const steps: Action[] = [
      { kind: "start" },
      { kind: "set_percentage", percentageThousandths: 50_000 },
      { kind: "pause" },
      { kind: "resume" },
      { kind: "set_percentage", percentageThousandths: 100_000 },
      { kind: "complete" },
      { kind: "roll_back" },
      { kind: "devices_told" },
    ];
    for (const action of steps) {
      position = positionAfter(nextPosition(position, one, action, 1_000));
      states.push(`${position.state} ${position.percentageThousandths}`);
    }
    expect(states).toEqual([
      "running 10000",
      "running 50000",
      "paused 50000",
      "running 50000",
      "running 100000",
      "completed 100000",
      "rolling_back 0",
      "rolled_back 0",
    ]);
  });

  it("refuses a share below the present one as not monotone", () => {
    expect(
      nextPosition(at("running", 50_000), one, { kind: "set_percentage", percentageThousandths: 49_999 }, 0),
    ).toEqual({ kind: "refused", refusal: expect.objectContaining({ kind: "percentage_not_monotone" }) });
  });

  it("says the shares in percent where it refuses one", () => {
    const refusal = (from: number, to: number) => {
      const outcome = nextPosition(at("running", from), one, { kind: "set_percentage", percentageThousandths: to }, 0);
      return outcome.kind === "refused" ? outcome.refusal.message : outcome.kind;
    };
    expect(refusal(100_000, 10_000)).toBe(
      "the share is 100 % and only grows, so it cannot be set to 10 %: to go back, roll the rollout back",
    );
    expect(refusal(12_500, 12_345)).toContain("12.5 % and only grows, so it cannot be set to 12.345 %");
  });

  it("waits for its time where the plan has one, and starts at once where that is over", () => {
    const scheduled: Plan = { ...one, scheduleTimeMs: 5_000 };
    expect(positionAfter(nextPosition(at("draft"), scheduled, { kind: "start" }, 4_999)).state).toBe("scheduled");
    expect(positionAfter(nextPosition(at("draft"), scheduled, { kind: "start" }, 5_000)).state).toBe("running");
    expect(nextPosition(at("scheduled"), scheduled, { kind: "schedule_due" }, 4_999)).toEqual({ kind: "unchanged" });
    expect(positionAfter(nextPosition(at("scheduled"), scheduled, { kind: "schedule_due" }, 5_000)).state).toBe(
      "running",
    );
  });

  it("goes on to the next stage when the present one has lasted, and waits for approval where that is asked", () => {
    const plan = planOf(stage(1_000, { minDwellMs: 60_000 }), stage(10_000, { approvalRequired: true }));
    const running = at("running", 1_000);
    expect(nextPosition(running, plan, { kind: "stage_due" }, 59_999)).toEqual({ kind: "unchanged" });
    const waiting = positionAfter(nextPosition(running, plan, { kind: "stage_due" }, 60_000));
    expect(waiting).toMatchObject({ state: "awaiting_approval", stageIndex: 1, percentageThousandths: 1_000 });
    expect(positionAfter(nextPosition(waiting, plan, { kind: "approve" }, 70_000))).toEqual({
      state: "running",
      stageIndex: 1,
      percentageThousandths: 10_000,
      stageTimeMs: 70_000,
    });
  });

  it("lets nobody pass a stage that must be approved by asking for a greater share", () => {
    const plan = planOf(stage(1_000), stage(10_000, { approvalRequired: true }), stage(50_000));
    const asked = positionAfter(
      nextPosition(at("running", 1_000), plan, { kind: "set_percentage", percentageThousandths: 50_000 }, 0),
    );
    expect(asked).toMatchObject({ state: "awaiting_approval", stageIndex: 1, percentageThousandths: 1_000 });
  });

  it("never ends a stage by itself that lasts as long as a member likes, or that asks for a sample", () => {
    expect(dueTimeOf(at("running", 1_000), planOf(stage(1_000), stage(2_000)))).toBeUndefined();
    const sampled = planOf(stage(1_000, { minDwellMs: 1, minSample: 10 }), stage(2_000));
    expect(dueTimeOf(at("running", 1_000), sampled)).toBeUndefined();
    expect(nextPosition(at("running", 1_000), sampled, { kind: "stage_due" }, 1e12)).toEqual({ kind: "unchanged" });
  });

  it("aborts what has delivered nothing and rolls back what has, and never the other way round", () => {
    for (const state of ["running", "paused", "awaiting_approval"] as const) {
      expect(nextPosition(at(state, 0), one, { kind: "abort" }, 0).kind).toBe("moved");
      expect(nextPosition(at(state, 0), one, { kind: "roll_back" }, 0).kind).toBe("refused");
      expect(nextPosition(at(state, 1), one, { kind: "abort" }, 0).kind).toBe("refused");
      expect(nextPosition(at(state, 1), one, { kind: "roll_back" }, 0).kind).toBe("moved");
    }
  });
});

const share = fc.integer({ min: 0, max: 100_000 });
const plans = fc.uniqueArray(share, { minLength: 1, maxLength: 6 }).chain((shares) =>
  fc.record({
    stages: fc.tuple(
      ...shares
        .sort((a, b) => a - b)
        .map((percentageThousandths) =>
          fc.record({
            percentageThousandths: fc.constant(percentageThousandths),
            minDwellMs: fc.constantFrom(0, 1_000),
            minSample: fc.constantFrom(0, 0, 5),
            approvalRequired: fc.boolean(),
          }),
        ),
    ),
    controlThousandths: fc.integer({ min: 0, max: 50_000 }),
    scheduleTimeMs: fc.option(fc.integer({ min: 0, max: 20_000 }), { nil: undefined }),
  }),
);
const kinds = [
  "start",
  "set_percentage",
  "approve",
  "pause",
  "resume",
  "complete",
  "roll_back",
  "abort",
  "delete",
  "schedule_due",
  "stage_due",
  "devices_told",
] as const;
const actions: fc.Arbitrary<Action> = fc
  .tuple(fc.constantFrom(...kinds), share)
  .map(([kind, percentageThousandths]) => (kind === "set_percentage" ? { kind, percentageThousandths } : { kind }));

describe("every walk through the state machine", () => {
  it("keeps the share growing until a rollback, the stage behind the share, and an answer to everything", () => {
    fc.assert(
      fc.property(plans, fc.array(actions, { maxLength: 40 }), (plan, walk) => {
        let position = at("draft");
        let nowMs = 0;
        for (const action of walk) {
          nowMs += 700;
          const outcome = nextPosition(position, plan, action, nowMs);
          if (outcome.kind === "refused") {
            expect(outcome.refusal.message).not.toBe("");
            continue;
          }
          if (outcome.kind === "deleted") {
            expect(["draft", "aborted", "rolled_back"]).toContain(position.state);
            return;
          }
          if (outcome.kind === "unchanged") continue;
          const next = outcome.position;
          expect(rolloutStates).toContain(next.state);
          if (next.state === "rolling_back" || next.state === "rolled_back") {
            expect(next.percentageThousandths).toBe(0);
          } else {
            expect(next.percentageThousandths).toBeGreaterThanOrEqual(position.percentageThousandths);
          }
          if (next.state === "completed") expect(next.percentageThousandths).toBe(100_000);
          expect(next.stageIndex).toBeGreaterThanOrEqual(position.stageIndex);
          expect(next.stageIndex).toBeLessThan(plan.stages.length);
          if (next.state === "running") {
            expect(plan.stages[next.stageIndex]?.percentageThousandths).toBeLessThanOrEqual(next.percentageThousandths);
          }
          // A stage that asks for approval is reached by approval alone.
          for (let index = position.stageIndex + 1; index <= next.stageIndex; index++) {
            if (plan.stages[index]?.approvalRequired === true) expect(next.state).toBe("awaiting_approval");
          }
          position = next;
        }
      }),
    );
  });

  it("answers a repeated step with `unchanged`", () => {
    fc.assert(
      fc.property(plans, fc.array(actions, { maxLength: 40 }), (plan, walk) => {
        let position = at("draft");
        for (const action of walk) {
          const outcome = nextPosition(position, plan, action, 30_000);
          if (outcome.kind !== "moved") continue;
          position = outcome.position;
          const isByTime = action.kind === "schedule_due" || action.kind === "stage_due";
          const mayRepeat = action.kind !== "approve" && !isByTime;
          const again = nextPosition(position, plan, action, 30_000);
          if (mayRepeat && !(action.kind === "set_percentage" && position.state === "awaiting_approval")) {
            expect(again).toEqual({ kind: "unchanged" });
          }
        }
      }),
    );
  });

  it("leaves ended rollouts alone but for rolling a completed one back and deleting", () => {
    fc.assert(
      fc.property(
        plans,
        actions,
        fc.constantFrom<RolloutState>("rolled_back", "aborted", "completed"),
        (plan, action, state) => {
          const outcome = nextPosition(at(state, state === "completed" ? 100_000 : 0), plan, action, 1e6);
          if (outcome.kind === "moved") expect([state, action.kind]).toEqual(["completed", "roll_back"]);
          if (outcome.kind === "deleted") expect(state).not.toBe("completed");
        },
      ),
    );
  });

  it("counts as active exactly the states between the start and the end", () => {
    expect(rolloutStates.filter((state) => !activeStates.includes(state))).toEqual([
      "draft",
      "completed",
      "rolled_back",
      "aborted",
    ]);
    // The index that keeps a second rollout of a model and a target from starting.
    const migration = readFileSync(new URL("./migrations/001_init.sql", import.meta.url), "utf8");
    const index = /rollouts_one_active[^;]*where state in \(([^)]*)\)/.exec(migration)?.[1] ?? "";
    expect(index.match(/\w+/g)).toEqual(activeStates);
  });
});

describe("docs/rollouts.md", () => {
  it("holds the table that the state machine is", () => {
    const documented = readFileSync(new URL("../../docs/rollouts.md", import.meta.url), "utf8");
    expect(documented).toContain(transitionTable());
  });
});

/** The table of every state and action, made from the machine with positions that have delivered something or not. */
function transitionTable(): string {
  const plan = planOf(stage(10_000, { minDwellMs: 1 }), stage(100_000));
  const columns = kinds.filter((kind) => kind !== "delete");
  const cell = (state: RolloutState, kind: (typeof kinds)[number]): string => {
    const shares = state === "running" || state === "paused" || state === "awaiting_approval" ? [0, 10_000] : [0];
    const found = new Set<string>();
    for (const exposed of state === "completed" ? [100_000] : kind === "complete" ? [...shares, 100_000] : shares) {
      const action: Action = kind === "set_percentage" ? { kind, percentageThousandths: 100_000 } : { kind };
      const outcome = nextPosition(at(state, exposed), plan, action, 10);
      if (outcome.kind === "moved" && outcome.position.state !== state) found.add(outcome.position.state);
      else if (outcome.kind === "moved" || outcome.kind === "unchanged") found.add("stays");
    }
    return [...found].join(", ") || "–";
  };
  const header = `| state | ${columns.join(" | ")} |`;
  const rule = `| --- |${" --- |".repeat(columns.length)}`;
  const rows = rolloutStates.map((state) => `| ${state} | ${columns.map((kind) => cell(state, kind)).join(" | ")} |`);
  return [header, rule, ...rows].join("\n");
}

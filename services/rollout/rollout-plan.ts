import { type Plan, wholeThousandths } from "./rollout.ts";

/** What is wrong with a plan: the field, as the contract names it, and why. */
export interface PlanProblem {
  readonly field: string;
  readonly message: string;
}

const maxScheduleMs = 366 * 24 * 60 * 60_000;

/**
 * Looks for what the bounds of single fields cannot say: a plan has a stage, and each has a greater share than the one
 * before, and a time within a year. Answers the first problem, or undefined for a sound plan.
 */
export function planProblem(plan: Plan, nowMs: number): PlanProblem | undefined {
  const { scheduleTimeMs } = plan;
  if (scheduleTimeMs !== undefined && !(scheduleTimeMs >= 0 && scheduleTimeMs <= nowMs + maxScheduleMs)) {
    return { field: "plan.schedule_time", message: "a rollout is scheduled for at most 366 days ahead" };
  }
  if (plan.stages.length === 0) return { field: "plan.stages", message: "a rollout needs at least one stage" };
  let before = -1;
  for (const [index, stage] of plan.stages.entries()) {
    const share = stage.percentageThousandths;
    const field = `plan.stages[${index}].percentage_thousandths`;
    if (!Number.isInteger(share) || share < 0 || share > wholeThousandths) {
      return { field, message: `a share is 0 to ${wholeThousandths} thousandths of a percent` };
    }
    if (share <= before) return { field, message: "each stage has a greater share than the one before" };
    before = share;
  }
  return undefined;
}

import { type Plan, wholeThousandths } from "./rollout.ts";

/** What is wrong with a plan: the field, as the contract names it, and why. */
export interface PlanProblem {
  readonly field: string;
  readonly message: string;
}

/**
 * Looks for what the bounds of single fields cannot say: a plan has a stage, and each has a greater share than the one
 * before. Answers the first problem, or undefined for a sound plan.
 */
export function planProblem(plan: Plan): PlanProblem | undefined {
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

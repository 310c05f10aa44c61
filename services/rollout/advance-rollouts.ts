import type { Call } from "@octomesh/mesh/call";
import { fenceLease, type Lease } from "@octomesh/mesh/lease";
import type { Dependencies } from "./dependencies.ts";
import type { Action } from "./rollout-state.ts";
import { stepRollout } from "./step-rollout.ts";
import { type DueRollout, listDue } from "./store/rollouts.ts";

/** How long a rollback waits for a watch that takes no more messages. */
const stalledWatchMs = 30_000;
const batch = 100;

/** A step that time takes, with the audit action it is recorded under and why it is taken. */
interface TimedStep {
  readonly action: Action;
  readonly audit: string;
  readonly reason: string;
}

/**
 * Takes every step that is due by time: scheduled rollouts start, stages whose time is over give way to the next, and
 * rollbacks that every watcher was told of end. Answers how many steps were taken. One rollout that cannot move does
 * not keep the others.
 *
 * @param lease only its holder does this; every change depends on it still being held
 * @param systemCall makes the audited call of this service's own work in an organisation
 */
export async function advanceRollouts(
  deps: Pick<Dependencies, "database" | "watchers" | "clock" | "log">,
  lease: Lease,
  systemCall: (orgId: string, action: string) => Call,
): Promise<number> {
  const { database, clock, log } = deps;
  const due = await database.system((tx) => listDue(tx, new Date(clock.now()), batch));
  let taken = 0;
  for (const rollout of due) {
    const step = stepFor(deps, rollout);
    if (step === undefined) continue;
    const { action, reason } = step;
    const call = systemCall(rollout.orgId, step.audit);
    try {
      const changed = await database.write(call, async (tx) => {
        if (!(await fenceLease(tx, lease))) {
          call.audit?.skip("lease lost");
          return false;
        }
        const result = await stepRollout(tx, call, { id: rollout.id, action, reason, nowMs: clock.now() });
        return result.changed;
      });
      if (changed) taken++;
    } catch (error) {
      log.warn({ err: error, rollout_id: rollout.id, action: action.kind }, "a rollout could not be moved on");
    }
  }
  return taken;
}

function stepFor(
  { watchers, clock }: Pick<Dependencies, "watchers" | "clock">,
  due: DueRollout,
): TimedStep | undefined {
  switch (due.state) {
    case "scheduled":
      return { action: { kind: "schedule_due" }, audit: "rollout.start", reason: "its time has come" };
    case "running":
      return { action: { kind: "stage_due" }, audit: "rollout.promote", reason: "the stage lasted as long as planned" };
    case "rolling_back": {
      const isStalled = clock.now() - due.dueTimeMs >= stalledWatchMs;
      if (!isStalled && !watchers.allTold(due.id, due.revision)) return undefined;
      return { action: { kind: "devices_told" }, audit: "rollout.end_rollback", reason: "the devices were told" };
    }
    default:
      return undefined;
  }
}

import { setTimeout as delay } from "node:timers/promises";
import { ObservedState_State } from "@octomesh/proto/octomesh/device/v1/observed_state_pb";
import {
  type Rollout,
  Rollout_State,
  Rollout_StateSchema,
  RolloutSchema,
} from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import type { Clients } from "@octomesh/sdk";
import { checkId } from "../check-id.ts";
import type { CommandContext, CommandInput } from "../command.ts";
import { CommandError } from "../command-error.ts";
import { describeTransition } from "../describe-transition.ts";
import { exitCode } from "../exit-code.ts";
import { formatTime } from "../format-time.ts";
import { toDocument } from "../output.ts";
import { choiceWord } from "../parse-choice.ts";
import { parseDuration } from "../parse-duration.ts";
import { formatPercentage, parsePercentage } from "../parse-percentage.ts";

const finalStates: ReadonlySet<Rollout_State> = new Set([
  Rollout_State.COMPLETED,
  Rollout_State.ROLLED_BACK,
  Rollout_State.ABORTED,
]);

/** How many devices run a model's version. */
interface Reach {
  /** Devices that run this version. */
  active: number;
  /** Devices that report any version of the model as running. */
  reporting: number;
}

/** `octomil rollouts watch`: prints every step, and the reach when it changes, until the end. */
export async function watchRollout(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("rol", input.args[0] ?? "");
  const until = input.text("until");
  const untilThousandths = until === undefined ? undefined : parsePercentage(until);
  const intervalMs = parseDuration(input.text("interval") ?? "2s") * 1000;
  const timeout = input.text("timeout");
  const deadline = timeout === undefined ? Number.POSITIVE_INFINITY : Date.now() + parseDuration(timeout) * 1000;
  const { signal } = context.terminal;
  const { clients } = await context.connect();
  const say = (text: string) => {
    if (!context.output.json && !context.output.quiet) context.terminal.out(`${text}\n`);
  };

  const seen = new Set<string>();
  let reach: Reach = { active: -1, reporting: -1 };
  for (;;) {
    const rollout = await clients.rollouts.getRollout({ id }, { signal });
    for (const transition of await transitionsOf(clients, id)) {
      if (seen.has(transition.id)) continue;
      seen.add(transition.id);
      const share = formatPercentage(transition.percentageThousandths);
      say(
        `${formatTime(transition.createTime)}  ${describeTransition(transition)}  ${share}  ${transition.reason}`.trimEnd(),
      );
    }
    const now = await reachOf(clients, rollout);
    if (now.active !== reach.active || now.reporting !== reach.reporting) {
      reach = now;
      say(`${" ".repeat(20)}  ${now.active} of ${now.reporting} devices run ${rollout.version}`);
    }
    const reached =
      untilThousandths !== undefined && now.reporting > 0 && now.active * 100_000 >= untilThousandths * now.reporting;
    if (reached || finalStates.has(rollout.state)) {
      const end = choiceWord(Rollout_StateSchema, rollout.state);
      context.output.result(
        { rollout: toDocument(RolloutSchema, rollout), devices_active: now.active, devices_reporting: now.reporting },
        `Rollout ${id} is ${end}; ${now.active} of ${now.reporting} devices run ${rollout.version}.`,
        end,
      );
      return;
    }
    if (Date.now() + intervalMs > deadline) {
      throw new CommandError(`rollout ${id} is still ${choiceWord(Rollout_StateSchema, rollout.state)}`, {
        code: exitCode.unavailable,
      });
    }
    await delay(intervalMs, undefined, { signal });
  }
}

async function transitionsOf(clients: Clients, rolloutId: string) {
  const transitions = [];
  let pageToken = "";
  do {
    const answer = await clients.rollouts.listRolloutTransitions({ rolloutId, pageSize: 1000, pageToken });
    transitions.push(...answer.transitions);
    pageToken = answer.nextPageToken;
  } while (pageToken !== "");
  return transitions;
}

async function reachOf(clients: Clients, rollout: Rollout): Promise<Reach> {
  const { counts } = await clients.devices.countObservedVersions({ modelId: rollout.modelId });
  let active = 0;
  let reporting = 0;
  for (const count of counts) {
    if (count.state !== ObservedState_State.ACTIVE) continue;
    reporting += Number(count.devices);
    if (count.versionId === rollout.versionId) active += Number(count.devices);
  }
  return { active, reporting };
}

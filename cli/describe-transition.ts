import { Rollout_StateSchema, type RolloutTransition } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { choiceWord } from "./parse-choice.ts";

/** Says a step in a rollout's life in words: `draft → running`, or the state alone where it did not change. */
export function describeTransition(item: RolloutTransition): string {
  const from = choiceWord(Rollout_StateSchema, item.fromState);
  const to = choiceWord(Rollout_StateSchema, item.toState);
  return from === to ? to : `${from} → ${to}`;
}

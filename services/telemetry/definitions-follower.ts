import type { Client } from "@connectrpc/connect";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import type { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import type { Logger } from "pino";
import type { RolloutDefinitions } from "./rollout-definitions.ts";

/** What following needs. */
export interface FollowOptions {
  readonly client: Pick<Client<typeof AssignmentService>, "watchRolloutDefinitions">;
  readonly definitions: RolloutDefinitions;
  readonly log: Logger;
  /** Ends the following. */
  readonly signal: AbortSignal;
  /** Longest pause before the stream is opened again, in milliseconds. Default 2,000. */
  readonly maxPauseMs?: number;
}

/** About four seconds of attempts. */
const quietFailures = 8;

/**
 * Follows the rollout service's definitions until the signal aborts: resumes from the last cursor after a break, with
 * growing pauses, and from the beginning where the cursor is no longer good. Never rejects.
 */
export async function followDefinitions(options: FollowOptions): Promise<void> {
  const { client, definitions, log, signal } = options;
  const maxPauseMs = options.maxPauseMs ?? 2000;
  let failures = 0;
  while (!signal.aborted) {
    try {
      const { cursor } = definitions;
      for await (const message of client.watchRolloutDefinitions({ cursor }, { signal, timeoutMs: 0 })) {
        definitions.apply(message);
        failures = 0;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (reasonOf(error) === Reason.CURSOR_EXPIRED) definitions.restart();
      // Siblings that start or stop together lose each other for a moment, which is nobody's concern.
      const level = failures < quietFailures ? "debug" : "warn";
      log[level]({ err: error }, "the stream of rollout definitions was lost");
    }
    failures += 1;
    await pause(Math.min(maxPauseMs, 25 * 2 ** Math.min(failures, 8)) * (0.5 + Math.random() / 2), signal);
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done, { once: true });
  });
}

import type { Client } from "@connectrpc/connect";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import type { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import type { Logger } from "pino";
import { retryForever } from "./retry-forever.ts";

/** A follower of rollout definitions. */
export interface DefinitionsFollower {
  /** Whether every change up to now has arrived, as far as can be known. */
  isFollowing(): boolean;
  /** Ends when the signal aborts. */
  readonly done: Promise<void>;
}

/** What a follower needs. */
export interface FollowDefinitionsOptions {
  readonly client: Pick<Client<typeof AssignmentService>, "watchRolloutDefinitions">;
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** Assignments of these organisations changed. */
  onChange(orgIds: readonly string[]): void;
  /** Changes may have been missed. */
  onGap(): void;
}

/**
 * Follows the rollout definitions for as long as the signal allows: resumes where the last stream ended, and begins anew
 * where rollout does not remember that far back.
 */
export function followDefinitions(options: FollowDefinitionsOptions): DefinitionsFollower {
  const { client, log, signal } = options;
  let cursor = "";
  let following = false;

  const follow = async (progressed: () => void): Promise<void> => {
    try {
      for await (const message of client.watchRolloutDefinitions({ cursor }, { signal, timeoutMs: 0 })) {
        const orgIds = new Set([...message.orgIds, ...message.rollouts.map((rollout) => rollout.orgId)]);
        orgIds.delete("");
        if (orgIds.size > 0) options.onChange([...orgIds]);
        cursor = message.cursor;
        if (message.caughtUp) following = true;
        progressed();
      }
    } catch (error) {
      if (reasonOf(error) === Reason.CURSOR_EXPIRED) {
        cursor = "";
        options.onGap();
      }
      throw error;
    } finally {
      following = false;
    }
  };

  return {
    isFollowing: () => following,
    done: retryForever({ work: follow, signal, log, what: "rollout definitions" }),
  };
}

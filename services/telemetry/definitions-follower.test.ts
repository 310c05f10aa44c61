import { create } from "@bufbuild/protobuf";
import { createClient, createRouterTransport, type ServiceImpl } from "@connectrpc/connect";
import { fail, Reason } from "@octomesh/mesh/errors";
import {
  AssignmentService,
  WatchRolloutDefinitionsResponseSchema,
} from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { Rollout_State as State } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import pino from "pino";
import { describe, expect, it, vi } from "vitest";
import { followDefinitions } from "./definitions-follower.ts";
import { createRolloutDefinitions } from "./rollout-definitions.ts";
import { sampleId } from "./test/sample-ids.ts";

const orgId = sampleId("org", "a");
const modelId = sampleId("mdl", "a");

type Watch = NonNullable<Partial<ServiceImpl<typeof AssignmentService>>["watchRolloutDefinitions"]>;

/** Follows a rollout service that answers as `watch` says, until `done`. Answers the cursors that were asked for. */
async function follow(watch: (turn: number, signal: AbortSignal) => ReturnType<Watch>, done: () => boolean) {
  const definitions = createRolloutDefinitions();
  const cursors: string[] = [];
  const transport = createRouterTransport((router) => {
    router.service(AssignmentService, {
      watchRolloutDefinitions: (request, context) => {
        cursors.push(request.cursor);
        return watch(cursors.length, context.signal);
      },
    });
  });
  const stop = new AbortController();
  const following = followDefinitions({
    client: createClient(AssignmentService, transport),
    definitions,
    log: pino({ level: "silent" }),
    signal: stop.signal,
    maxPauseMs: 5,
  });
  await vi.waitFor(() => expect(done()).toBe(true));
  await vi.waitFor(() => expect(definitions.caughtUp).toBe(true));
  stop.abort();
  await following;
  return { definitions, cursors };
}

function message(cursor: string, letters: string, caughtUp = false) {
  const rollouts = [...letters].map((letter) => ({
    id: sampleId("rol", letter),
    orgId,
    modelId,
    state: State.RUNNING,
  }));
  return create(WatchRolloutDefinitionsResponseSchema, { cursor, rollouts, caughtUp });
}

/** Keeps a stream open until it is no longer wanted. */
function untilAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

describe("followDefinitions", () => {
  it("resumes after the last cursor when the stream breaks", async () => {
    let turns = 0;
    const { definitions, cursors } = await follow(
      async function* (turn, signal) {
        turns = turn;
        if (turn === 1) {
          yield message("7", "a", true);
          throw new Error("connection lost");
        }
        yield message("8", "b", true);
        await untilAborted(signal);
      },
      () => turns === 2,
    );
    expect(cursors).toEqual(["", "7"]);
    expect(definitions.of(orgId, modelId).map(({ id }) => id)).toContain(sampleId("rol", "a"));
  });

  it("begins anew when its cursor is too old", async () => {
    let turns = 0;
    const { definitions, cursors } = await follow(
      async function* (turn, signal) {
        turns = turn;
        if (turn === 1) {
          yield message("7", "a", true);
          return;
        }
        if (turn === 2) throw fail(Reason.CURSOR_EXPIRED, "too old");
        yield message("1", "b");
        yield message("9", "", true);
        await untilAborted(signal);
      },
      () => turns === 3,
    );
    expect(cursors).toEqual(["", "7", ""]);
    await vi.waitFor(() => expect(definitions.of(orgId, modelId).map(({ id }) => id)).toEqual([sampleId("rol", "b")]));
  });
});

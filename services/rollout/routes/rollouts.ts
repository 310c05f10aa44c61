import { randomBytes } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { EmptySchema } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import type { Rollout as RolloutMessage } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { RolloutService } from "@octomesh/proto/octomesh/rollout/v1/rollout_service_pb";
import type { Dependencies } from "../dependencies.ts";
import { targetKeyOf } from "../rollout.ts";
import { planOfMessage, rolloutMessage, stateOfWire, transitionMessage } from "../rollout-message.ts";
import { planProblem } from "../rollout-plan.ts";
import type { Action } from "../rollout-state.ts";
import { stepOf, stepRollout, versionNotReady } from "../step-rollout.ts";
import { getModelVersion } from "../store/model-versions.ts";
import { getModel } from "../store/models.ts";
import { getRollout, insertRollout, listRollouts, listTransitions, priorRollout } from "../store/rollouts.ts";
import { createOnce } from "./create-once.ts";

/** The rpcs of rollouts. */
export function rolloutRoutes(deps: Dependencies): ServiceImpl<typeof RolloutService> {
  const { database, clock, pager } = deps;

  async function step(
    request: { id: string; reason: string },
    ctx: HandlerContext,
    action: Action,
  ): Promise<RolloutMessage> {
    const call = callOf(ctx);
    const { id, reason } = request;
    const { rollout } = await database.write(call, (tx) =>
      stepRollout(tx, call, { id, action, reason, nowMs: clock.now() }),
    );
    return rolloutMessage(rollout);
  }

  return {
    async createRollout(request, ctx) {
      const call = callOf(ctx);
      const { orgId } = call;
      const plan = planOfMessage(request.plan);
      const problem = planProblem(plan, clock.now());
      if (problem !== undefined)
        throw fail(Reason.VALIDATION_FAILED, `${problem.field}: ${problem.message}`, { ...problem });
      const groupIds = request.target?.groupIds ?? [];
      await deps.demandGroups(call, groupIds);
      return await createOnce(deps, ctx, call, RolloutService.method.createRollout, request, async (tx) => {
        const nowMs = clock.now();
        const model = await getModel(tx, orgId, request.modelId);
        const version = await getModelVersion(tx, orgId, model.id, request.version);
        if (version.state !== "published") throw versionNotReady(version.version);
        const prior = await priorRollout(tx, orgId, model.id, targetKeyOf(groupIds));
        const id = newId("rol", nowMs);
        const rollout = await insertRollout(
          tx,
          {
            orgId,
            id,
            modelId: model.id,
            versionId: version.id,
            groupIds,
            plan,
            salt: randomBytes(16).toString("hex"),
            priority: request.priority,
            priorVersionId: prior?.versionId ?? "",
          },
          stepOf(call, { reason: "", nowMs }),
        );
        call.audit?.resource("rollout", id);
        call.audit?.note("model", model.name);
        call.audit?.note("version", version.version);
        if (!request.start) return rolloutMessage(rollout);
        const started = await stepRollout(tx, call, { id, action: { kind: "start" }, reason: "", nowMs });
        return rolloutMessage(started.rollout);
      });
    },

    async getRollout(request, ctx) {
      const { orgId } = callOf(ctx);
      return rolloutMessage(await database.read(orgId, (tx) => getRollout(tx, orgId, request.id)));
    },

    async listRollouts(request, ctx) {
      const { orgId } = callOf(ctx);
      const page = {
        method: "octomesh.rollout.v1.RolloutService/ListRollouts",
        orgId,
        filter: [request.modelId, String(request.state)],
        pageSize: request.pageSize,
        pageToken: request.pageToken,
      };
      const { limit, after } = pager.read(page);
      const rollouts = await database.read(orgId, async (tx) => {
        const modelId = request.modelId === "" ? undefined : (await getModel(tx, orgId, request.modelId)).id;
        const before = after?.[0] === undefined ? undefined : BigInt(after[0]);
        return await listRollouts(tx, orgId, { modelId, state: stateOfWire(request.state), before }, limit + 1);
      });
      const shown = rollouts.slice(0, limit);
      const last = shown.at(-1);
      return {
        rollouts: shown.map(rolloutMessage),
        nextPageToken:
          rollouts.length > limit && last !== undefined ? pager.next(page, [last.sequence.toString()]) : "",
      };
    },

    async deleteRollout(request, ctx) {
      const call = callOf(ctx);
      const action: Action = { kind: "delete" };
      await database.write(call, (tx) =>
        stepRollout(tx, call, { id: request.id, action, reason: "", nowMs: clock.now() }),
      );
      return create(EmptySchema);
    },

    startRollout: (request, ctx) => step(request, ctx, { kind: "start" }),
    setRolloutPercentage: (request, ctx) =>
      step(request, ctx, { kind: "set_percentage", percentageThousandths: request.percentageThousandths }),
    approveRolloutStage: (request, ctx) => step(request, ctx, { kind: "approve" }),
    pauseRollout: (request, ctx) => step(request, ctx, { kind: "pause" }),
    resumeRollout: (request, ctx) => step(request, ctx, { kind: "resume" }),
    completeRollout: (request, ctx) => step(request, ctx, { kind: "complete" }),
    rollBackRollout: (request, ctx) => step(request, ctx, { kind: "roll_back" }),
    abortRollout: (request, ctx) => step(request, ctx, { kind: "abort" }),

    async listRolloutTransitions(request, ctx) {
      const { orgId } = callOf(ctx);
      const page = {
        method: "octomesh.rollout.v1.RolloutService/ListRolloutTransitions",
        orgId,
        filter: [request.rolloutId],
        pageSize: request.pageSize,
        pageToken: request.pageToken,
      };
      const { limit, after } = pager.read(page);
      const rows = await database.read(orgId, async (tx) => {
        await getRollout(tx, orgId, request.rolloutId);
        return await listTransitions(tx, orgId, request.rolloutId, BigInt(after?.[0] ?? 0), limit + 1);
      });
      const shown = rows.slice(0, limit);
      const last = shown.at(-1);
      return {
        transitions: shown.map(transitionMessage),
        nextPageToken: rows.length > limit && last !== undefined ? pager.next(page, [last.sequence.toString()]) : "",
      };
    },
  };
}

import { createHash } from "node:crypto";
import { create, fromBinary } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { type DesiredState, DesiredStateSchema } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import {
  type AssignmentService,
  type WatchRolloutDefinitionsResponse,
  WatchRolloutDefinitionsResponseSchema,
} from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import {
  Rollout_State,
  type Rollout as RolloutMessage,
  RolloutSchema,
} from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { definitionsTopic, type OrganizationDefinitions } from "../definitions.ts";
import type { Dependencies } from "../dependencies.ts";
import { downloadGrantLifetimeMs, mintDownloadGrant } from "../download-grant.ts";
import { type Definition, type DeviceFacts, resolveDevice } from "../resolve.ts";
import { rolloutMessage } from "../rollout-message.ts";
import { findRollout, listDecidingOfAll } from "../store/rollouts.ts";

const snapshotPage = 500;

/** The rpcs by which device-registry and telemetry learn which device is to run what. */
export function assignmentRoutes(deps: Dependencies): ServiceImpl<typeof AssignmentService> {
  const { database, definitions, outbox, watchers, clock } = deps;
  return {
    async resolveDesiredStates(request) {
      const { orgId } = request;
      const current = await definitions.current(orgId);
      const nowMs = clock.now();
      const desiredStates = request.devices.map((facts) => desiredState(deps, orgId, current, facts, nowMs));
      return { desiredStates, cursor: current.cursor };
    },

    async *watchRolloutDefinitions(request, ctx) {
      const { signal } = callOf(ctx);
      const watcher = watchers.begin();
      try {
        let cursor = request.cursor;
        if (cursor === "") {
          cursor = await outbox.head(definitionsTopic);
          let after = { orgId: "", id: "" };
          for (;;) {
            const from = after;
            const rollouts = await database.system((tx) => listDecidingOfAll(tx, from, snapshotPage));
            const last = rollouts.at(-1);
            const isEnd = rollouts.length < snapshotPage || last === undefined;
            // Only the last message of what stands has a cursor: whoever is cut off before begins again.
            watcher.busy();
            yield response(isEnd ? cursor : "", rollouts.map(rolloutMessage), isEnd);
            watcher.idle();
            for (const rollout of rollouts) {
              if (rollout.state === "rolling_back") watcher.told(rollout.id, rollout.revision);
            }
            if (isEnd) break;
            after = { orgId: last.orgId, id: last.id };
          }
        } else {
          // What was missed follows at once; the peer has what stood at its cursor.
          yield response(cursor, [], true);
        }
        for await (const event of outbox.watch({ topic: definitionsTopic, cursor, signal })) {
          const announced = fromBinary(RolloutSchema, event.payload);
          // As it stands now: an event that is older than what the peer has must not take it back.
          const rollout = await database.read(event.orgId, (tx) => findRollout(tx, event.orgId, announced.id));
          const deleted = { ...announced, state: Rollout_State.ABORTED };
          watcher.busy();
          yield response(event.cursor, [rollout === undefined ? deleted : rolloutMessage(rollout)], false);
          watcher.idle();
          if (rollout?.state === "rolling_back") watcher.told(rollout.id, rollout.revision);
        }
      } finally {
        watcher.end();
      }
    },
  };
}

function response(cursor: string, rollouts: RolloutMessage[], caughtUp: boolean): WatchRolloutDefinitionsResponse {
  const orgIds = [...new Set(rollouts.map((rollout) => rollout.orgId))];
  return create(WatchRolloutDefinitionsResponseSchema, { cursor, rollouts, orgIds, caughtUp });
}

function desiredState(
  deps: Dependencies,
  orgId: string,
  current: OrganizationDefinitions,
  facts: DeviceFacts,
  nowMs: number,
): DesiredState {
  const { deviceId } = facts;
  const decided = resolveDevice(current.index, facts);
  return create(DesiredStateSchema, {
    deviceId,
    etag: etagOf(decided),
    createTime: timestampFromMs(nowMs),
    pollInterval: durationFromMs(deps.pollIntervalMs),
    models: decided.flatMap(({ rolloutId, versionId }) => {
      const version = current.versions.get(versionId);
      if (version === undefined) return [];
      const { artifactId } = version;
      const expireTimeMs = nowMs + downloadGrantLifetimeMs;
      return [
        {
          modelId: version.modelId,
          modelName: version.modelName,
          version: version.version,
          versionId,
          rolloutId,
          manifest: Uint8Array.from(version.manifest),
          signature: Uint8Array.from(version.signature),
          keyId: version.keyId,
          downloadPath: `/api/v1/artifacts/${artifactId}/content`,
          downloadGrant: mintDownloadGrant(deps.grantKey, {
            orgId,
            deviceId,
            artifactId,
            rolloutId,
            versionId,
            expireTimeMs,
          }),
        },
      ];
    }),
  });
}

/** Changes exactly when a model or its version does: not with grants, nor with which rollout gave it. */
function etagOf(decided: readonly Definition[]): string {
  const hash = createHash("sha256");
  for (const { modelId, versionId } of decided) hash.update(`${modelId}\0${versionId}\n`);
  return hash.digest("base64url").slice(0, 27);
}

import { randomBytes } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ConnectRouter } from "@connectrpc/connect";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";

/** Rollout as this service sees it: one model, whose version an organisation's definitions decide. */
export interface FakeRollout {
  /** Sizes of the batches that were resolved, in order. */
  readonly batches: number[];
  /** How often manifest keys were asked for. */
  manifestKeyCalls: number;
  /** Rollout cannot be reached while true. */
  away: boolean;
  /** Calls that were refused while it was away. */
  refusals: number;
  /** Batches larger than this do not fit into one answer. */
  maxBatch: number;
  /** Cursors that watches began from. */
  readonly resumedFrom: string[];
  /** Gives an organisation's devices (of one group, if given) another version and tells those who watch. */
  deliver(orgId: string, version: string, groupId?: string): void;
  /** Ends every watch, as a restart would. */
  cutWatches(): void;
  routes(router: ConnectRouter): void;
}

/** Makes the fake. */
export function fakeRollout(): FakeRollout {
  const modelId = newId("mdl");
  const definitions = new Map<string, { groupId: string | undefined; version: string }[]>();
  const log: string[] = [];
  let watchers: (() => void)[] = [];
  let generation = 0;

  const wake = (): void => {
    const waiting = watchers;
    watchers = [];
    for (const each of waiting) each();
  };

  const refuseWhileAway = (): void => {
    if (!fake.away) return;
    fake.refusals += 1;
    throw fail(Reason.SERVICE_UNAVAILABLE, "rollout is away");
  };

  const fake: FakeRollout = {
    batches: [],
    manifestKeyCalls: 0,
    away: false,
    refusals: 0,
    maxBatch: 1000,
    resumedFrom: [],
    deliver(orgId, version, groupId) {
      const ofOrg = (definitions.get(orgId) ?? []).filter((each) => each.groupId !== groupId);
      definitions.set(orgId, [...ofOrg, { groupId, version }]);
      log.push(orgId);
      wake();
    },
    cutWatches() {
      generation += 1;
      wake();
    },
    routes(router) {
      router.service(AssignmentService, {
        async resolveDesiredStates({ orgId, devices }) {
          refuseWhileAway();
          if (devices.length > fake.maxBatch) throw fail(Reason.REQUEST_TOO_LARGE, "the answer is too large");
          fake.batches.push(devices.length);
          const desiredStates = devices.map(({ deviceId, groupIds }) => {
            const decided = (definitions.get(orgId) ?? []).filter(
              ({ groupId }) => groupId === undefined || groupIds.includes(groupId),
            );
            const version = (decided.find(({ groupId }) => groupId !== undefined) ?? decided[0])?.version;
            return {
              deviceId,
              etag: version === undefined ? "none" : `v${version}`,
              createTime: timestampFromMs(Date.now()),
              models:
                version === undefined
                  ? []
                  : [{ modelId, version, downloadGrant: `grant ${randomBytes(8).toString("hex")}` }],
            };
          });
          return { desiredStates, cursor: String(log.length) };
        },
        async *watchRolloutDefinitions({ cursor }, context) {
          fake.resumedFrom.push(cursor);
          const began = generation;
          let at = Number(cursor);
          yield { cursor: String(at), caughtUp: true };
          while (!context.signal.aborted && began === generation) {
            if (at < log.length) {
              const orgIds = [...new Set(log.slice(at))];
              at = log.length;
              yield { cursor: String(at), orgIds };
            } else {
              await new Promise<void>((resolve) => {
                watchers.push(resolve);
                context.signal.addEventListener("abort", () => resolve(), { once: true });
              });
            }
          }
        },
      });
      router.service(ModelVersionService, {
        async listManifestKeys() {
          refuseWhileAway();
          fake.manifestKeyCalls += 1;
          return { keys: [{ id: newId("mky"), publicKey: randomBytes(32) }] };
        },
      });
    },
  };
  return fake;
}

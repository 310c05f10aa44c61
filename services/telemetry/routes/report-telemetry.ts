import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import type { Clock } from "@octomesh/mesh/clock";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { TelemetryService } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import type { ActiveDevices } from "../active-devices.ts";
import { checkBatch } from "../batch-check.ts";
import { placeReport, type Subject } from "../cohort.ts";
import type { MeasureWindow } from "../measure-window.ts";
import type { TelemetryMetrics } from "../metrics.ts";
import type { RolloutDefinitions } from "../rollout-definitions.ts";
import { rollUp } from "../rollups.ts";
import type { Batch, BatchOutcome } from "../store.ts";
import type { UnknownSubjects } from "../unknown-subjects.ts";

/** What taking reports needs. */
export interface ReportDeps {
  readonly activeDevices: ActiveDevices;
  readonly definitions: RolloutDefinitions;
  readonly unknownSubjects: UnknownSubjects;
  readonly window: MeasureWindow;
  readonly clock: Clock;
  readonly metrics: TelemetryMetrics;
  /** Stores a batch with others; settles when it is durable. */
  submit(batch: Batch): Promise<BatchOutcome>;
}

/** Takes batches of reports, each once. */
export function reportRoutes(deps: ReportDeps): Pick<ServiceImpl<typeof TelemetryService>, "reportTelemetry"> {
  const { activeDevices, definitions, unknownSubjects, window, clock, metrics } = deps;
  return {
    async reportTelemetry(request, context) {
      const call = callOf(context);
      const { orgId, caller } = call;
      await activeDevices.demand(call);
      if (!definitions.caughtUp) {
        throw fail(
          Reason.DEPENDENCY_UNAVAILABLE,
          "the rollouts are not known yet, and with them where reports belong: try again",
          {},
          { retryAfterMs: 1000 },
        );
      }
      const droppedFields = checkBatch(request, orgId, definitions.ownerOf);
      const receiveMs = clock.now();
      const { rollups, accepted } = rollUp(request.reports, {
        orgId,
        deviceId: caller.id,
        receiveMs,
        window,
        place: (subject) =>
          isNamed(definitions, orgId, subject) || unknownSubjects.admit(orgId, subject, receiveMs)
            ? placeReport(subject, definitions.of(orgId, subject.modelId))
            : undefined,
      });
      const { bootId, sequence } = request;
      const deviceId = caller.id;
      const outcome = await deps.submit({
        orgId,
        deviceId,
        bootId,
        sequence,
        receiveMs,
        accepted,
        droppedFields,
        rollups,
      });
      if (outcome.duplicate) {
        metrics.duplicate();
      } else {
        metrics.stored(accepted);
        metrics.leftOut(request.reports.length - accepted);
        metrics.dropped(droppedFields);
      }
      return outcome;
    },
  };
}

/** Whether everything that a subject names is in a rollout of the organisation. */
function isNamed(definitions: RolloutDefinitions, orgId: string, { modelId, versionId, rolloutId }: Subject): boolean {
  return [modelId, versionId, rolloutId].every((id) => id === "" || definitions.ownerOf(id) === orgId);
}

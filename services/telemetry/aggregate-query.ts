import { durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { AggregateFilter } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";

/** Which aggregates to read, every default filled in. Times in milliseconds since the epoch. */
export interface AggregateQuery {
  readonly modelId: string;
  readonly versionId: string;
  readonly rolloutId: string;
  /** A whole minute; included. */
  readonly startMs: number;
  /** A whole minute; excluded. */
  readonly endMs: number;
  /** Length of a stretch of time, whole minutes. Stretches begin at multiples of it since the epoch. */
  readonly widthMs: number;
  readonly bySlice: boolean;
}

const minuteMs = 60_000;
const hourMs = 3_600_000;

/**
 * Fills in what a filter leaves out, and widens its times to whole minutes, for there is nothing finer. Throws
 * VALIDATION_FAILED where the end is not after the beginning or the width is not whole minutes.
 */
export function aggregateQueryOf(filter: AggregateFilter | undefined, nowMs: number): AggregateQuery {
  const endMs = filter?.endTime === undefined ? nowMs : timestampMs(filter.endTime);
  const startMs = filter?.startTime === undefined ? Math.min(nowMs, endMs) - hourMs : timestampMs(filter.startTime);
  const widthMs = filter?.width === undefined ? minuteMs : durationMs(filter.width);
  if (!(startMs < endMs)) throw invalid("filter.end_time", "must be after filter.start_time");
  if (widthMs % minuteMs !== 0) throw invalid("filter.width", "must be whole minutes");
  return {
    modelId: filter?.modelId ?? "",
    versionId: filter?.versionId ?? "",
    rolloutId: filter?.rolloutId ?? "",
    startMs: Math.floor(startMs / minuteMs) * minuteMs,
    endMs: Math.ceil(endMs / minuteMs) * minuteMs,
    widthMs,
    bySlice: filter?.bySlice ?? false,
  };
}

function invalid(field: string, rule: string): Error {
  return fail(Reason.VALIDATION_FAILED, `${field} ${rule}`, { field });
}

import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import type { Clock } from "@octomesh/mesh/clock";
import { createPager, type PageRequest, type Pager } from "@octomesh/mesh/paging";
import { createTurns, type Turns } from "@octomesh/mesh/turns";
import type { AggregateKeySchema } from "@octomesh/proto/octomesh/telemetry/v1/health_report_pb";
import type { AggregateFilter, TelemetryService } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { type AggregateQuery, aggregateQueryOf } from "../aggregate-query.ts";
import { quantilesOf } from "../latency-sketch.ts";
import { type AggregatePage, type AggregateRow, cursorOf, type Store } from "../store.ts";

/** What listing aggregates needs. */
export interface ListDeps {
  readonly store: Store;
  readonly clock: Clock;
  /** Key of the page tokens. */
  readonly pageKey: Uint8Array;
}

/** Aggregates that are being read at a time: reads of much must not take every connection from what devices report. */
const readLimits = { total: 4, perOwner: 2, maxWaiting: 32 };

type ListMethods =
  | "listHealthAggregates"
  | "listLatencyAggregates"
  | "listQualityAggregates"
  | "listRolloutProgressAggregates";

/** Answers questions about what devices reported. */
export function listRoutes(deps: ListDeps): Pick<ServiceImpl<typeof TelemetryService>, ListMethods> {
  const { store } = deps;
  const tools = { clock: deps.clock, pager: createPager(deps.pageKey), turns: createTurns(readLimits) };
  return {
    async listHealthAggregates(request, context) {
      const { rows, query, nextPageToken } = await listPage(request, context, {
        ...tools,
        read: store.listHealth,
      });
      const aggregates = rows.map((row) => ({
        key: keyOf(row, query),
        reports: row.reports,
        devices: row.devices,
        crashes: row.crashes,
        jobsCompleted: row.jobsCompleted,
        jobsFailed: row.jobsFailed,
        batteryPercentMean: mean(row.batterySum, row.batteryReports),
        hotReports: row.hotReports,
      }));
      return { aggregates, nextPageToken };
    },

    async listLatencyAggregates(request, context) {
      const { rows, query, nextPageToken } = await listPage(request, context, {
        ...tools,
        read: store.listLatency,
      });
      const aggregates = rows.map((row) => {
        const [p50Ms, p95Ms, p99Ms] = quantilesOf(row.sketch, [0.5, 0.95, 0.99]);
        return {
          key: keyOf(row, query),
          operation: row.dimension,
          count: row.count,
          errors: row.errors,
          meanMs: mean(row.sumMs, Number(row.count)),
          p50Ms,
          p95Ms,
          p99Ms,
          maxMs: row.maxMs,
        };
      });
      return { aggregates, nextPageToken };
    },

    async listQualityAggregates(request, context) {
      const { rows, query, nextPageToken } = await listPage(request, context, {
        ...tools,
        read: store.listQuality,
      });
      const aggregates = rows.map((row) => ({
        key: keyOf(row, query),
        metric: row.dimension,
        reports: row.reports,
        samples: row.samples,
        mean: mean(row.weightedSum, Number(row.samples)),
        min: row.min,
        max: row.max,
      }));
      return { aggregates, nextPageToken };
    },

    async listRolloutProgressAggregates(request, context) {
      const { rows, query, nextPageToken } = await listPage(request, context, {
        ...tools,
        read: store.listProgress,
      });
      const aggregates = rows.map((row) => ({
        key: keyOf(row, query),
        step: row.dimension,
        count: row.count,
        bytes: row.bytes,
        durationSecondsMean: mean(row.durationSeconds, row.timed),
      }));
      return { aggregates, nextPageToken };
    },
  };
}

interface ListRequest {
  readonly pageSize: number;
  readonly pageToken: string;
  readonly filter?: AggregateFilter | undefined;
}

interface ListTools<R> {
  readonly clock: Clock;
  readonly pager: Pager;
  readonly turns: Turns;
  read(orgId: string, query: AggregateQuery, page: AggregatePage): Promise<R[]>;
}

/** A page token carries the times of the first page's query, for "now" moves from page to page. */
async function listPage<R extends AggregateRow>(
  request: ListRequest,
  context: HandlerContext,
  { clock, pager, turns, read }: ListTools<R>,
): Promise<{ rows: R[]; query: AggregateQuery; nextPageToken: string }> {
  const { orgId, signal } = callOf(context);
  const { filter, pageSize, pageToken } = request;
  const asked = aggregateQueryOf(filter, clock.now());
  const page: PageRequest = {
    method: `${context.method.parent.typeName}/${context.method.name}`,
    orgId,
    filter: [
      asked.modelId,
      asked.versionId,
      asked.rolloutId,
      String(filter?.startTime?.seconds ?? ""),
      String(filter?.endTime?.seconds ?? ""),
      String(asked.widthMs),
      String(asked.bySlice),
    ],
    pageSize,
    pageToken,
  };
  const { limit, after: place } = pager.read(page);
  const [startMs, endMs, ...after] = place ?? [];
  const query = place === undefined ? asked : { ...asked, startMs: Number(startMs), endMs: Number(endMs) };
  const rows = await turns.take(orgId, async () => {
    signal.throwIfAborted();
    return await read(orgId, query, { limit: limit + 1, after: place === undefined ? undefined : after });
  });
  const hasMore = rows.length > limit;
  if (hasMore) rows.pop();
  const last = rows.at(-1);
  const nextPageToken =
    hasMore && last !== undefined
      ? pager.next(page, [String(query.startMs), String(query.endMs), ...cursorOf(last)])
      : "";
  return { rows, query, nextPageToken };
}

function keyOf(row: AggregateRow, { widthMs }: AggregateQuery): MessageInitShape<typeof AggregateKeySchema> {
  return {
    modelId: row.modelId,
    versionId: row.versionId,
    rolloutId: row.rolloutId,
    cohort: row.cohort,
    slice: row.slice,
    startTime: timestampFromMs(row.startMs),
    width: durationFromMs(widthMs),
  };
}

/** 0 where there is nothing to take the mean of. */
function mean(sum: number, count: number): number {
  return count === 0 ? 0 : sum / count;
}

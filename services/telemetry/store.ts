import type { Database } from "@octomesh/mesh/database";
import { type RawBuilder, sql, type Transaction } from "kysely";
import type { AggregateQuery } from "./aggregate-query.ts";
import { addToBin, emptySketch, type LatencySketch } from "./latency-sketch.ts";
import { emptyRollups, mergeRollups, type RollupKey, type Rollups } from "./rollups.ts";

/** Tables that hold an organisation's data, in the order in which every transaction touches them. */
export const tables = ["batches", "health_rollups", "latency_rollups", "quality_rollups", "progress_rollups"] as const;

/** Name of a table of this service. */
export type TableName = (typeof tables)[number];

/** The schema as Kysely sees it: every statement here is SQL, so tables need no columns. */
export type TelemetrySchema = Record<TableName, object>;

/** One batch of one device, summed and ready to be stored. */
export interface Batch {
  readonly orgId: string;
  readonly deviceId: string;
  readonly bootId: string;
  readonly sequence: bigint;
  readonly receiveMs: number;
  /** Reports that are in the rollups. */
  readonly accepted: number;
  /** Unknown fields that were left out. */
  readonly droppedFields: number;
  readonly rollups: Rollups;
}

/** What became of a batch. For one that was taken before, the figures are those of then. */
export interface BatchOutcome {
  readonly duplicate: boolean;
  readonly accepted: number;
  readonly droppedFields: number;
}

/** What an aggregate is of; `slice` is -1 for a whole cohort. */
export interface AggregateRow {
  /** Beginning of the stretch of time, milliseconds since the epoch. */
  readonly startMs: number;
  readonly modelId: string;
  readonly versionId: string;
  readonly rolloutId: string;
  readonly cohort: number;
  readonly slice: number;
  readonly dimension: number;
}

/** Health over one stretch of time. */
export interface HealthRow extends AggregateRow {
  readonly reports: bigint;
  readonly devices: bigint;
  readonly crashes: bigint;
  readonly jobsCompleted: bigint;
  readonly jobsFailed: bigint;
  readonly batterySum: number;
  readonly batteryReports: number;
  readonly hotReports: bigint;
}

/** Latency over one stretch of time. */
export interface LatencyRow extends AggregateRow {
  readonly count: bigint;
  readonly errors: bigint;
  readonly sumMs: number;
  readonly maxMs: number;
  readonly sketch: LatencySketch;
}

/** Quality over one stretch of time. */
export interface QualityRow extends AggregateRow {
  readonly reports: bigint;
  readonly samples: bigint;
  readonly weightedSum: number;
  readonly min: number;
  readonly max: number;
}

/** Steps over one stretch of time. */
export interface ProgressRow extends AggregateRow {
  readonly count: bigint;
  readonly bytes: bigint;
  readonly durationSeconds: number;
  readonly timed: number;
}

/** Which page of aggregates. */
export interface AggregatePage {
  /** How many rows at most. */
  readonly limit: number;
  /** `cursorOf` the last row of the page before; undefined for the first page. */
  readonly after: readonly string[] | undefined;
}

/** Every statement of the service. */
export interface Store {
  /**
   * Stores batches in one transaction, each once: one that was stored before, or stands twice in the list, changes
   * nothing. When it returns, what it says is durable. Outcomes are in the order of the batches; 1 to 4,096 of them.
   */
  storeBatches(batches: readonly Batch[]): Promise<BatchOutcome[]>;
  listHealth(orgId: string, query: AggregateQuery, page: AggregatePage): Promise<HealthRow[]>;
  listLatency(orgId: string, query: AggregateQuery, page: AggregatePage): Promise<LatencyRow[]>;
  listQuality(orgId: string, query: AggregateQuery, page: AggregatePage): Promise<QualityRow[]>;
  listProgress(orgId: string, query: AggregateQuery, page: AggregatePage): Promise<ProgressRow[]>;
  /** Deletes up to `limit` rows of a table from before a time (milliseconds since the epoch). Answers how many. */
  prune(table: TableName, beforeMs: number, limit: number): Promise<number>;
  /** Deletes everything of an organisation, a bounded number of rows at a time, and counts it by table. */
  eraseOrganization(orgId: string): Promise<Record<TableName, number>>;
  /** Counts what there is of an organisation, in all tables. */
  countOrganization(orgId: string): Promise<number>;
}

const eraseRows = 10_000;

/** Opens the store over the service's database. */
export function createStore(database: Database<TelemetrySchema>): Store {
  return {
    storeBatches(batches) {
      const orgIds = [...new Set(batches.map(({ orgId }) => orgId))];
      const distinct = new Map<string, Batch>();
      for (const batch of batches) if (!distinct.has(nameOf(batch))) distinct.set(nameOf(batch), batch);
      return database.ingest(orgIds, async (tx) => {
        const fresh = await insertBatches(tx, [...distinct.values()]);
        const sums = emptyRollups();
        for (const [name, batch] of distinct) if (fresh.has(name)) mergeRollups(sums, batch.rollups);
        await addHealth(tx, sums);
        await addLatency(tx, sums);
        await addQuality(tx, sums);
        await addProgress(tx, sums);
        const known = await readBatches(
          tx,
          [...distinct].filter(([name]) => !fresh.has(name)).map(([, batch]) => batch),
        );
        return batches.map((batch) => {
          const name = nameOf(batch);
          const { accepted, droppedFields } = known.get(name) ?? distinct.get(name) ?? batch;
          // The first of its name in the list is the one that was stored; those after it are repetitions.
          return { duplicate: !fresh.delete(name), accepted, droppedFields };
        });
      });
    },

    listHealth: (orgId, query, page) =>
      database.read(orgId, async (tx) => {
        const rows = await aggregate<Columns<HealthRow>>(tx, "health_rollups", query, page, [
          sql`sum(reports)::bigint as "reports"`,
          sql`sum(devices)::bigint as "devices"`,
          sql`sum(crashes)::bigint as "crashes"`,
          sql`sum(jobs_completed)::bigint as "jobsCompleted"`,
          sql`sum(jobs_failed)::bigint as "jobsFailed"`,
          sql`sum(battery_sum)::double precision as "batterySum"`,
          sql`sum(battery_reports)::double precision as "batteryReports"`,
          sql`sum(hot_reports)::bigint as "hotReports"`,
        ]);
        return rows.map(withKey);
      }),

    listLatency: (orgId, query, page) =>
      database.read(
        orgId,
        async (tx) => {
          const rows = await aggregate<Columns<Omit<LatencyRow, "sketch">> & { zeros: number }>(
            tx,
            "latency_rollups",
            query,
            page,
            [
              sql`sum(count)::bigint as "count"`,
              sql`sum(errors)::bigint as "errors"`,
              sql`sum(sum_ms) as "sumMs"`,
              sql`max(max_ms) as "maxMs"`,
              sql`sum(zeros)::double precision as "zeros"`,
            ],
          );
          const sketches = new Map<string, LatencySketch>();
          for (const row of rows)
            sketches.set(cursorOf(withKey(row)).join("|"), { ...emptySketch(), zeros: row.zeros });
          const first = rows[0];
          const last = rows.at(-1);
          if (first !== undefined && last !== undefined) {
            for (const bin of await readBins(tx, query, withKey(first), withKey(last))) {
              const sketch = sketches.get(cursorOf(withKey(bin)).join("|"));
              if (sketch !== undefined) addToBin(sketch, bin.bin, bin.weight);
            }
          }
          return rows.map((row) => {
            const { zeros: _, ...rest } = row;
            const keyed = withKey(rest);
            return { ...keyed, sketch: sketches.get(cursorOf(keyed).join("|")) ?? emptySketch() };
          });
        },
        // The bins are read by a second statement, which must see what the first one saw.
        { isolation: "repeatable read" },
      ),

    listQuality: (orgId, query, page) =>
      database.read(orgId, async (tx) => {
        const rows = await aggregate<Columns<QualityRow>>(tx, "quality_rollups", query, page, [
          sql`sum(reports)::bigint as "reports"`,
          sql`sum(samples)::bigint as "samples"`,
          sql`sum(weighted_sum) as "weightedSum"`,
          sql`min(min) as "min"`,
          sql`max(max) as "max"`,
        ]);
        return rows.map(withKey);
      }),

    listProgress: (orgId, query, page) =>
      database.read(orgId, async (tx) => {
        const rows = await aggregate<Columns<ProgressRow>>(tx, "progress_rollups", query, page, [
          sql`sum(count)::bigint as "count"`,
          sql`least(sum(bytes), 9223372036854775807)::bigint as "bytes"`,
          sql`sum(duration_seconds) as "durationSeconds"`,
          sql`sum(timed)::double precision as "timed"`,
        ]);
        return rows.map(withKey);
      }),

    prune: (table, beforeMs, limit) =>
      database.system(async (tx) => {
        const before = new Date(beforeMs);
        const time = table === "batches" ? sql.ref("receive_time") : sql.ref("minute");
        const result = await sql`
          delete from ${sql.table(table)} where ctid = any (array(
            select ctid from ${sql.table(table)} where ${time} < ${before} limit ${limit}))`.execute(tx);
        return Number(result.numAffectedRows ?? 0n);
      }),

    async eraseOrganization(orgId) {
      const erased: Record<TableName, number> = {
        batches: 0,
        health_rollups: 0,
        latency_rollups: 0,
        quality_rollups: 0,
        progress_rollups: 0,
      };
      for (const table of tables) {
        for (;;) {
          const count = await database.ingest([orgId], async (tx) => {
            const result = await sql`
              delete from ${sql.table(table)} where ctid = any (array(
                select ctid from ${sql.table(table)} where org_id = ${orgId} limit ${eraseRows}))`.execute(tx);
            return Number(result.numAffectedRows ?? 0n);
          });
          erased[table] += count;
          if (count < eraseRows) break;
        }
      }
      return erased;
    },

    countOrganization: (orgId) =>
      database.read(orgId, async (tx) => {
        let count = 0;
        for (const table of tables) {
          const { rows } = await sql<{ n: bigint }>`
            select count(*) as n from ${sql.table(table)} where org_id = ${orgId}`.execute(tx);
          count += Number(rows[0]?.n ?? 0n);
        }
        return count;
      }),
  };
}

/** The place of a row among all rows of its kind: what the next page begins after. */
export function cursorOf(row: AggregateRow): string[] {
  const { startMs, modelId, versionId, rolloutId, cohort, slice, dimension } = row;
  return [String(startMs), modelId, versionId, rolloutId, String(cohort), String(slice), String(dimension)];
}

type Tx = Transaction<TelemetrySchema>;

/** A row as the database returns it: its beginning as a Date. */
type Columns<R extends AggregateRow> = Omit<R, "startMs"> & { readonly start: Date };

function withKey<R extends { readonly start: Date }>({ start, ...rest }: R): Omit<R, "start"> & { startMs: number } {
  return { ...rest, startMs: start.getTime() };
}

function nameOf({ orgId, deviceId, bootId, sequence }: Batch): string {
  return `${orgId}|${deviceId}|${bootId}|${sequence}`;
}

/** Names of the batches that were not known before. A batch that another transaction is storing is waited for. */
async function insertBatches(tx: Tx, batches: readonly Batch[]): Promise<Set<string>> {
  const { rows } = await sql<{ orgId: string; deviceId: string; bootId: string; sequence: bigint }>`
    insert into batches (org_id, device_id, boot_id, sequence, accepted, dropped_fields, receive_time)
    select * from unnest(
      ${batches.map(({ orgId }) => orgId)}::text[],
      ${batches.map(({ deviceId }) => deviceId)}::text[],
      ${batches.map(({ bootId }) => bootId)}::text[],
      ${batches.map(({ sequence }) => String(sequence))}::bigint[],
      ${batches.map(({ accepted }) => accepted)}::integer[],
      ${batches.map(({ droppedFields }) => droppedFields)}::integer[],
      ${batches.map(({ receiveMs }) => new Date(receiveMs))}::timestamptz[]
    ) as incoming
    order by 1, 2, 3, 4
    on conflict do nothing
    returning org_id as "orgId", device_id as "deviceId", boot_id as "bootId", sequence`.execute(tx);
  return new Set(rows.map((row) => `${row.orgId}|${row.deviceId}|${row.bootId}|${row.sequence}`));
}

async function readBatches(tx: Tx, batches: readonly Batch[]): Promise<Map<string, BatchOutcome>> {
  if (batches.length === 0) return new Map();
  const { rows } = await sql<{ name: string; accepted: number; droppedFields: number }>`
    select org_id || '|' || device_id || '|' || boot_id || '|' || sequence as name,
      accepted, dropped_fields as "droppedFields"
    from batches
    join unnest(
      ${batches.map(({ orgId }) => orgId)}::text[],
      ${batches.map(({ deviceId }) => deviceId)}::text[],
      ${batches.map(({ bootId }) => bootId)}::text[],
      ${batches.map(({ sequence }) => String(sequence))}::bigint[]
    ) as wanted (org_id, device_id, boot_id, sequence) using (org_id, device_id, boot_id, sequence)`.execute(tx);
  return new Map(rows.map((row) => [row.name, { duplicate: true, ...row }]));
}

const keyColumns = sql.raw("org_id, minute, model_id, version_id, rollout_id, cohort, slice, dimension");

/** The key columns of rows, as arrays for `unnest`. */
function keyArrays(entries: readonly { key: RollupKey }[]): RawBuilder<unknown> {
  const keys = entries.map(({ key }) => key);
  return sql`
    ${keys.map(({ orgId }) => orgId)}::text[],
    ${keys.map(({ minute }) => new Date(minute))}::timestamptz[],
    ${keys.map(({ modelId }) => modelId)}::text[],
    ${keys.map(({ versionId }) => versionId)}::text[],
    ${keys.map(({ rolloutId }) => rolloutId)}::text[],
    ${keys.map(({ cohort }) => cohort)}::smallint[],
    ${keys.map(({ slice }) => slice)}::smallint[],
    ${keys.map(({ dimension }) => dimension)}::smallint[]`;
}

async function addHealth(tx: Tx, { health }: Rollups): Promise<void> {
  if (health.size === 0) return;
  const sums = [...health.values()];
  await sql`
    insert into health_rollups as r (${keyColumns}, reports, devices, crashes, jobs_completed, jobs_failed,
      battery_sum, battery_reports, hot_reports)
    select * from unnest(${keyArrays(sums)},
      ${sums.map(({ reports }) => reports)}::bigint[],
      ${sums.map(({ devices }) => devices)}::bigint[],
      ${sums.map(({ crashes }) => crashes)}::bigint[],
      ${sums.map(({ jobsCompleted }) => jobsCompleted)}::bigint[],
      ${sums.map(({ jobsFailed }) => jobsFailed)}::bigint[],
      ${sums.map(({ batterySum }) => batterySum)}::bigint[],
      ${sums.map(({ batteryReports }) => batteryReports)}::bigint[],
      ${sums.map(({ hotReports }) => hotReports)}::bigint[]
    ) as incoming
    order by 1, 2, 3, 4, 5, 6, 7, 8
    on conflict (${keyColumns}) do update set
      reports = r.reports + excluded.reports,
      devices = r.devices + excluded.devices,
      crashes = r.crashes + excluded.crashes,
      jobs_completed = r.jobs_completed + excluded.jobs_completed,
      jobs_failed = r.jobs_failed + excluded.jobs_failed,
      battery_sum = r.battery_sum + excluded.battery_sum,
      battery_reports = r.battery_reports + excluded.battery_reports,
      hot_reports = r.hot_reports + excluded.hot_reports`.execute(tx);
}

/** The bins of both sides are added up inside the upsert, under the row's lock: a sketch merges like a counter. */
async function addLatency(tx: Tx, { latency }: Rollups): Promise<void> {
  if (latency.size === 0) return;
  const sums = [...latency.values()];
  const bins = sums.map(({ sketch }) => [...sketch.bins].sort(([a], [b]) => a - b));
  await sql`
    insert into latency_rollups as r (${keyColumns}, count, errors, sum_ms, max_ms, zeros, bins, counts)
    select org_id, minute, model_id, version_id, rollout_id, cohort, slice, dimension, count, errors, sum_ms, max_ms,
      zeros, bins::smallint[], counts::bigint[]
    from unnest(${keyArrays(sums)},
      ${sums.map(({ count }) => count)}::bigint[],
      ${sums.map(({ errors }) => errors)}::bigint[],
      ${sums.map(({ sumMs }) => sumMs)}::double precision[],
      ${sums.map(({ maxMs }) => maxMs)}::double precision[],
      ${sums.map(({ sketch }) => sketch.zeros)}::bigint[],
      ${bins.map((pairs) => `{${pairs.map(([bin]) => bin).join(",")}}`)}::text[],
      ${bins.map((pairs) => `{${pairs.map(([, count]) => count).join(",")}}`)}::text[]
    ) as incoming (${keyColumns}, count, errors, sum_ms, max_ms, zeros, bins, counts)
    order by 1, 2, 3, 4, 5, 6, 7, 8
    on conflict (${keyColumns}) do update set
      count = r.count + excluded.count,
      errors = r.errors + excluded.errors,
      sum_ms = r.sum_ms + excluded.sum_ms,
      max_ms = greatest(r.max_ms, excluded.max_ms),
      zeros = r.zeros + excluded.zeros,
      (bins, counts) = (
        select coalesce(array_agg(bin order by bin), '{}'), coalesce(array_agg(weight order by bin), '{}')
        from (
          select bin, sum(weight)::bigint as weight
          from (
            select * from unnest(r.bins, r.counts) as held (bin, weight)
            union all
            select * from unnest(excluded.bins, excluded.counts) as added (bin, weight)
          ) as both_sides
          group by bin
        ) as merged
      )`.execute(tx);
}

async function addQuality(tx: Tx, { quality }: Rollups): Promise<void> {
  if (quality.size === 0) return;
  const sums = [...quality.values()];
  await sql`
    insert into quality_rollups as r (${keyColumns}, reports, samples, weighted_sum, min, max)
    select * from unnest(${keyArrays(sums)},
      ${sums.map(({ reports }) => reports)}::bigint[],
      ${sums.map(({ samples }) => samples)}::bigint[],
      ${sums.map(({ weightedSum }) => weightedSum)}::double precision[],
      ${sums.map(({ min }) => min)}::double precision[],
      ${sums.map(({ max }) => max)}::double precision[]
    ) as incoming
    order by 1, 2, 3, 4, 5, 6, 7, 8
    on conflict (${keyColumns}) do update set
      reports = r.reports + excluded.reports,
      samples = r.samples + excluded.samples,
      weighted_sum = r.weighted_sum + excluded.weighted_sum,
      min = least(r.min, excluded.min),
      max = greatest(r.max, excluded.max)`.execute(tx);
}

async function addProgress(tx: Tx, { progress }: Rollups): Promise<void> {
  if (progress.size === 0) return;
  const sums = [...progress.values()];
  await sql`
    insert into progress_rollups as r (${keyColumns}, count, bytes, duration_seconds, timed)
    select * from unnest(${keyArrays(sums)},
      ${sums.map(({ count }) => count)}::bigint[],
      ${sums.map(({ bytes }) => String(bytes))}::numeric[],
      ${sums.map(({ durationSeconds }) => durationSeconds)}::double precision[],
      ${sums.map(({ timed }) => timed)}::bigint[]
    ) as incoming
    order by 1, 2, 3, 4, 5, 6, 7, 8
    on conflict (${keyColumns}) do update set
      count = r.count + excluded.count,
      bytes = r.bytes + excluded.bytes,
      duration_seconds = r.duration_seconds + excluded.duration_seconds,
      timed = r.timed + excluded.timed`.execute(tx);
}

const groupColumns = sql.raw('"start", "modelId", "versionId", "rolloutId", "cohort", "slice", "dimension"');

/** The key of an aggregate, from the columns of a rollup. */
function groupKey({ widthMs, bySlice }: AggregateQuery): RawBuilder<unknown> {
  return sql`
    date_bin(make_interval(secs => ${widthMs / 1000}::double precision), minute, timestamptz '1970-01-01 00:00:00+00') as "start",
    model_id as "modelId", version_id as "versionId", rollout_id as "rolloutId", cohort,
    ${bySlice ? sql`slice` : sql`(-1)::smallint as slice`}, dimension`;
}

function matching(query: AggregateQuery): RawBuilder<unknown> {
  const { startMs, endMs, modelId, versionId, rolloutId } = query;
  return sql.join(
    [
      sql`minute >= ${new Date(startMs)} and minute < ${new Date(endMs)}`,
      ...(modelId === "" ? [] : [sql`model_id = ${modelId}`]),
      ...(versionId === "" ? [] : [sql`version_id = ${versionId}`]),
      ...(rolloutId === "" ? [] : [sql`rollout_id = ${rolloutId}`]),
    ],
    sql` and `,
  );
}

function position(cursor: readonly string[]): RawBuilder<unknown> {
  const [start, modelId, versionId, rolloutId, cohort, slice, dimension] = cursor;
  return sql`(${new Date(Number(start))}::timestamptz, ${modelId}::text, ${versionId}::text, ${rolloutId}::text,
    ${cohort}::smallint, ${slice}::smallint, ${dimension}::smallint)`;
}

/** One page of aggregates, oldest first, and within a stretch of time by the rest of the key. */
async function aggregate<R>(
  tx: Tx,
  table: TableName,
  query: AggregateQuery,
  page: AggregatePage,
  sums: readonly RawBuilder<unknown>[],
): Promise<R[]> {
  const resumed =
    page.after === undefined ? query : { ...query, startMs: Math.max(query.startMs, Number(page.after[0])) };
  const after = page.after === undefined ? sql`true` : sql`(${groupColumns}) > ${position(page.after)}`;
  const { rows } = await sql<R>`
    select * from (
      select ${groupKey(query)}, ${sql.join([...sums])}
      from ${sql.table(table)} where ${matching(resumed)}
      group by 1, 2, 3, 4, 5, 6, 7
    ) as grouped
    where ${after}
    order by ${groupColumns}
    limit ${page.limit}`.execute(tx);
  return rows;
}

/** What the bins of the aggregates from `first` to `last` hold. */
async function readBins(
  tx: Tx,
  query: AggregateQuery,
  first: AggregateRow,
  last: AggregateRow,
): Promise<(Columns<AggregateRow> & { bin: number; weight: number })[]> {
  const startMs = Math.max(query.startMs, first.startMs);
  const endMs = Math.min(query.endMs, last.startMs + query.widthMs);
  const { rows } = await sql<Columns<AggregateRow> & { bin: number; weight: number }>`
    select ${groupColumns}, bin, sum(weight)::double precision as weight
    from (
      select ${groupKey(query)}, held.bin, held.weight
      from latency_rollups cross join lateral unnest(bins, counts) as held (bin, weight)
      where ${matching({ ...query, startMs, endMs })}
    ) as binned
    where (${groupColumns}) between ${position(cursorOf(first))} and ${position(cursorOf(last))}
    group by ${groupColumns}, bin`.execute(tx);
  return rows;
}

import type { Database } from "@octomesh/mesh/database";
import { fail, Reason } from "@octomesh/mesh/errors";
import { sql, type Transaction } from "kysely";
import type { BootOrder } from "../boot-order.ts";
import { diffModels, followReport, type ObservedModelRecord, type ObservedReport } from "../observed-state.ts";
import type { StoredState } from "../registration.ts";
import type { DeviceRegistryTables } from "../tables.ts";
import { type BootOrderRow, bootOrderOf, earlierBootsJson } from "./boot-order-row.ts";

/** One report on its way in. */
export interface IncomingReport extends ObservedReport {
  readonly orgId: string;
  readonly deviceId: string;
  /** Milliseconds since the Unix epoch. */
  readonly timeMs: number;
}

/** What became of a report. */
export interface ReportOutcome {
  /** State of the device; undefined where there is none. */
  readonly deviceState: StoredState | undefined;
  readonly applied: boolean;
}

/** The last account of a device. */
export interface ObservedStateRecord extends ObservedReport {
  readonly updateMs: number;
}

/** How many devices have a version in a state (a number of octomesh.device.v1.ObservedState.State). */
export interface VersionCountRecord {
  readonly versionId: string;
  readonly state: number;
  readonly devices: bigint;
}

/** The part of the store that holds what devices say they run. */
export interface ObservedStateStore {
  /** Stores reports of any organisations in one transaction, in the order given, writing only what they change. */
  record(reports: readonly IncomingReport[]): Promise<ReportOutcome[]>;
  /** The last account of a device. RESOURCE_NOT_FOUND if the organisation has no such device, undefined if it gave none. */
  get(orgId: string, deviceId: string): Promise<ObservedStateRecord | undefined>;
  /** Counts active devices by version and state of a model, 10,000 counts at most. */
  countVersions(orgId: string, modelId: string): Promise<VersionCountRecord[]>;
}

interface StateRow extends BootOrderRow {
  org_id: string;
  device_id: string;
}

interface ModelRow {
  org_id: string;
  device_id: string;
  model_id: string;
  version_id: string;
  state: number;
  failure: number;
  previous_version_id: string;
}

interface Followed {
  readonly orgId: string;
  readonly deviceId: string;
  order: BootOrder;
  /** The last report that applied. */
  report: IncomingReport | undefined;
}

/** Opens the observed states part of the store. */
export function observedStateStore(database: Database<DeviceRegistryTables>): ObservedStateStore {
  return {
    async record(reports) {
      if (reports.length === 0) return [];
      const orgIds = [...new Set(reports.map((report) => report.orgId))];
      return await database.ingest(orgIds, async (tx) => {
        const states = await deviceStates(tx, reports);
        const accepted = reports.filter((report) => states.get(keyOf(report)) === "active");
        const followed = await lockStates(tx, accepted);
        const outcomes = reports.map((report): ReportOutcome => {
          const deviceState = states.get(keyOf(report));
          const state = deviceState === "active" ? followed.get(keyOf(report)) : undefined;
          if (state === undefined) return { deviceState, applied: false };
          const { applied, order } = followReport(state.order, report);
          state.order = order;
          if (applied) state.report = report;
          return { deviceState, applied };
        });
        await writeReports(tx, [...followed.values()].filter(hasReport));
        return outcomes;
      });
    },

    async get(orgId, deviceId) {
      return await database.read(orgId, async (tx) => {
        const { rows } = await sql<{ boot_id: string | null; sequence: bigint | null; update_time: Date | null }>`
          select o.boot_id, o.sequence, o.update_time from devices d
          left join observed_states o on o.org_id = d.org_id and o.device_id = d.id
          where d.org_id = ${orgId} and d.id = ${deviceId} and d.state <> 'reserved'`.execute(tx);
        const row = rows[0];
        if (row === undefined) {
          throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such device", { type: "device", id: deviceId });
        }
        if (row.update_time === null) return undefined;
        const models = await sql<ModelRow>`select org_id, device_id, model_id, version_id, state, failure,
            previous_version_id from observed_models
          where org_id = ${orgId} and device_id = ${deviceId} order by model_id, version_id`.execute(tx);
        return {
          bootId: row.boot_id ?? "",
          sequence: row.sequence ?? 0n,
          models: models.rows.map(modelRecord),
          updateMs: row.update_time.getTime(),
        };
      });
    },

    async countVersions(orgId, modelId) {
      const { rows } = await database.read(orgId, (tx) =>
        sql<{ version_id: string; state: number; devices: bigint }>`
          select o.version_id, o.state, count(distinct o.device_id) as devices
          from observed_models o join devices d on d.org_id = o.org_id and d.id = o.device_id
          where o.org_id = ${orgId} and o.model_id = ${modelId} and d.state = 'active'
          group by o.version_id, o.state order by o.version_id, o.state limit 10000`.execute(tx),
      );
      return rows.map((row) => ({ versionId: row.version_id, state: row.state, devices: row.devices }));
    },
  };
}

async function deviceStates(
  tx: Transaction<DeviceRegistryTables>,
  reports: readonly IncomingReport[],
): Promise<Map<string, StoredState>> {
  const { rows } = await sql<{ org_id: string; id: string; state: StoredState }>`select d.org_id, d.id, d.state
    from (select distinct * from unnest(${reports.map((report) => report.orgId)}::text[],
      ${reports.map((report) => report.deviceId)}::text[]) as u (org_id, device_id)) k
    join devices d on d.org_id = k.org_id and d.id = k.device_id`.execute(tx);
  return new Map(rows.map((row) => [`${row.org_id} ${row.id}`, row.state]));
}

async function lockStates(
  tx: Transaction<DeviceRegistryTables>,
  reports: readonly IncomingReport[],
): Promise<Map<string, Followed>> {
  if (reports.length === 0) return new Map();
  const distinct = [...new Map(reports.map((report) => [keyOf(report), report])).values()];
  const orgIds = distinct.map((report) => report.orgId);
  const deviceIds = distinct.map((report) => report.deviceId);
  const keys = sql`unnest(${orgIds}::text[], ${deviceIds}::text[]) as k (org_id, device_id)`;
  await sql`insert into observed_states (org_id, device_id) select k.org_id, k.device_id from ${keys}
    order by 1, 2 on conflict do nothing`.execute(tx);
  const { rows } = await sql<StateRow>`select o.org_id, o.device_id, o.boot_id, o.sequence, o.earlier_boots
    from ${keys} join observed_states o on o.org_id = k.org_id and o.device_id = k.device_id
    order by o.org_id, o.device_id for update of o`.execute(tx);
  return new Map(
    rows.map((row) => [
      `${row.org_id} ${row.device_id}`,
      { orgId: row.org_id, deviceId: row.device_id, order: bootOrderOf(row), report: undefined },
    ]),
  );
}

async function writeReports(
  tx: Transaction<DeviceRegistryTables>,
  followed: readonly (Followed & { report: IncomingReport })[],
): Promise<void> {
  if (followed.length === 0) return;
  const orgIds = followed.map((state) => state.orgId);
  const deviceIds = followed.map((state) => state.deviceId);
  await sql`update observed_states o set boot_id = u.boot_id, sequence = u.sequence,
      earlier_boots = u.earlier_boots::jsonb, update_time = u.update_time
    from unnest(${orgIds}::text[], ${deviceIds}::text[],
      ${followed.map(({ order }) => order.bootId)}::text[],
      ${followed.map(({ order }) => String(order.sequence))}::bigint[],
      ${followed.map(({ order }) => earlierBootsJson(order))}::text[],
      ${followed.map(({ report }) => new Date(report.timeMs))}::timestamptz[]
    ) as u (org_id, device_id, boot_id, sequence, earlier_boots, update_time)
    where o.org_id = u.org_id and o.device_id = u.device_id`.execute(tx);
  const stored = await storedModels(tx, orgIds, deviceIds);
  const upsert: ModelRow[] = [];
  const remove: ModelRow[] = [];
  for (const { orgId, deviceId, report } of followed) {
    const difference = diffModels(stored.get(`${orgId} ${deviceId}`) ?? [], report.models);
    upsert.push(...difference.upsert.map((model) => modelRow(orgId, deviceId, model)));
    remove.push(...difference.remove.map((model) => modelRow(orgId, deviceId, model)));
  }
  if (remove.length > 0) {
    await sql`delete from observed_models o using unnest(${remove.map((row) => row.org_id)}::text[],
        ${remove.map((row) => row.device_id)}::text[], ${remove.map((row) => row.model_id)}::text[],
        ${remove.map((row) => row.version_id)}::text[]) as u (org_id, device_id, model_id, version_id)
      where o.org_id = u.org_id and o.device_id = u.device_id and o.model_id = u.model_id
        and o.version_id = u.version_id`.execute(tx);
  }
  if (upsert.length > 0) {
    await sql`insert into observed_models (org_id, device_id, model_id, version_id, state, failure, previous_version_id)
      select * from unnest(${upsert.map((row) => row.org_id)}::text[], ${upsert.map((row) => row.device_id)}::text[],
        ${upsert.map((row) => row.model_id)}::text[], ${upsert.map((row) => row.version_id)}::text[],
        ${upsert.map((row) => row.state)}::smallint[], ${upsert.map((row) => row.failure)}::smallint[],
        ${upsert.map((row) => row.previous_version_id)}::text[])
      on conflict (org_id, device_id, model_id, version_id) do update set state = excluded.state,
        failure = excluded.failure, previous_version_id = excluded.previous_version_id`.execute(tx);
  }
}

async function storedModels(
  tx: Transaction<DeviceRegistryTables>,
  orgIds: readonly string[],
  deviceIds: readonly string[],
): Promise<Map<string, ObservedModelRecord[]>> {
  const { rows } = await sql<ModelRow>`select o.org_id, o.device_id, o.model_id, o.version_id, o.state, o.failure,
      o.previous_version_id
    from unnest(${[...orgIds]}::text[], ${[...deviceIds]}::text[]) as k (org_id, device_id)
    join observed_models o on o.org_id = k.org_id and o.device_id = k.device_id`.execute(tx);
  const byDevice = new Map<string, ObservedModelRecord[]>();
  for (const row of rows) {
    const key = `${row.org_id} ${row.device_id}`;
    const models = byDevice.get(key) ?? [];
    models.push(modelRecord(row));
    byDevice.set(key, models);
  }
  return byDevice;
}

function modelRow(orgId: string, deviceId: string, model: ObservedModelRecord): ModelRow {
  return {
    org_id: orgId,
    device_id: deviceId,
    model_id: model.modelId,
    version_id: model.versionId,
    state: model.state,
    failure: model.failure,
    previous_version_id: model.previousVersionId,
  };
}

function modelRecord(row: ModelRow): ObservedModelRecord {
  return {
    modelId: row.model_id,
    versionId: row.version_id,
    state: row.state,
    failure: row.failure,
    previousVersionId: row.previous_version_id,
  };
}

function hasReport(state: Followed): state is Followed & { report: IncomingReport } {
  return state.report !== undefined;
}

function keyOf(report: { orgId: string; deviceId: string }): string {
  return `${report.orgId} ${report.deviceId}`;
}

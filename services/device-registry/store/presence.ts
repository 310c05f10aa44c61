import type { Database } from "@octomesh/mesh/database";
import { sql, type Transaction } from "kysely";
import { type BootOrder, followBoot } from "../boot-order.ts";
import type { StoredState } from "../registration.ts";
import type { DeviceRegistryTables } from "../tables.ts";
import { bootOrderOf, earlierBootsJson } from "./boot-order-row.ts";

/** One heartbeat as it is stored. Empty versions leave what is known. */
export interface Heartbeat {
  readonly orgId: string;
  readonly deviceId: string;
  readonly bootId: string;
  readonly sequence: bigint;
  readonly sdkVersion: string;
  readonly osVersion: string;
  readonly appVersion: string;
  /** Milliseconds since the Unix epoch. */
  readonly timeMs: number;
}

/** The part of the store that knows which devices are alive. */
export interface PresenceStore {
  /**
   * Stores heartbeats of any organisations in one transaction, each in the order given, and answers for each the state
   * of its device; undefined where there is none. Those of devices that are not active change nothing.
   */
  record(heartbeats: readonly Heartbeat[]): Promise<(StoredState | undefined)[]>;
}

interface PresenceRow {
  org_id: string;
  device_id: string;
  state: StoredState;
  sdk_version: string;
  os_version: string;
  app_version: string;
  boot_id: string;
  sequence: bigint;
  earlier_boots: [string, string][];
  last_heartbeat_time: Date | null;
}

interface PresenceUpdate {
  readonly row: PresenceRow;
  order: BootOrder;
  lastHeartbeatMs: number;
  cloneSigns: number;
}

const maxCloneSigns = 1_000_000;

/** Opens the presence part of the store. */
export function presenceStore(database: Database<DeviceRegistryTables>): PresenceStore {
  return {
    async record(heartbeats) {
      if (heartbeats.length === 0) return [];
      const orgIds = [...new Set(heartbeats.map((beat) => beat.orgId))];
      return await database.ingest(orgIds, async (tx) => {
        const rows = await lockRows(tx, heartbeats);
        const updates = new Map<string, PresenceUpdate>();
        const versions = new Map<string, { sdkVersion: string; osVersion: string; appVersion: string }>();
        const states = heartbeats.map((beat) => {
          const key = keyOf(beat.orgId, beat.deviceId);
          const row = rows.get(key);
          if (row?.state === "active") {
            updates.set(key, follow(updates.get(key) ?? updateOf(row), beat));
            const before = versions.get(key) ?? versionsOf(row);
            versions.set(key, {
              sdkVersion: beat.sdkVersion || before.sdkVersion,
              osVersion: beat.osVersion || before.osVersion,
              appVersion: beat.appVersion || before.appVersion,
            });
          }
          return row?.state;
        });
        await writePresence(tx, [...updates.values()]);
        await writeVersions(tx, rows, versions);
        return states;
      });
    },
  };
}

async function lockRows(
  tx: Transaction<DeviceRegistryTables>,
  heartbeats: readonly Heartbeat[],
): Promise<Map<string, PresenceRow>> {
  const keys = new Map(heartbeats.map((beat) => [keyOf(beat.orgId, beat.deviceId), beat]));
  const orgIds = [...keys.values()].map((beat) => beat.orgId);
  const deviceIds = [...keys.values()].map((beat) => beat.deviceId);
  // Locked in one order by every replica, so that batches wait for each other and never in a circle.
  const { rows } = await sql<PresenceRow>`select d.org_id, d.id as device_id, d.state, d.sdk_version, d.os_version,
      d.app_version, p.boot_id, p.sequence, p.earlier_boots, p.last_heartbeat_time
    from unnest(${orgIds}::text[], ${deviceIds}::text[]) as k (org_id, device_id)
    join devices d on d.org_id = k.org_id and d.id = k.device_id
    join device_presence p on p.org_id = k.org_id and p.device_id = k.device_id
    order by d.org_id, d.id for update of p`.execute(tx);
  return new Map(rows.map((row) => [keyOf(row.org_id, row.device_id), row]));
}

function updateOf(row: PresenceRow): PresenceUpdate {
  return { row, order: bootOrderOf(row), lastHeartbeatMs: row.last_heartbeat_time?.getTime() ?? 0, cloneSigns: 0 };
}

function follow(update: PresenceUpdate, beat: Heartbeat): PresenceUpdate {
  const { message, order } = followBoot(update.order, beat);
  return {
    row: update.row,
    order,
    lastHeartbeatMs: Math.max(update.lastHeartbeatMs, beat.timeMs),
    cloneSigns: update.cloneSigns + (message === "returned" ? 1 : 0),
  };
}

async function writePresence(tx: Transaction<DeviceRegistryTables>, updates: readonly PresenceUpdate[]): Promise<void> {
  if (updates.length === 0) return;
  await sql`update device_presence p set boot_id = u.boot_id, sequence = u.sequence,
      earlier_boots = u.earlier_boots::jsonb, last_heartbeat_time = u.last_heartbeat_time,
      clone_signs = least(p.clone_signs + u.clone_signs, ${maxCloneSigns})
    from unnest(
      ${updates.map(({ row }) => row.org_id)}::text[],
      ${updates.map(({ row }) => row.device_id)}::text[],
      ${updates.map(({ order }) => order.bootId)}::text[],
      ${updates.map(({ order }) => String(order.sequence))}::bigint[],
      ${updates.map(({ order }) => earlierBootsJson(order))}::text[],
      ${updates.map(({ lastHeartbeatMs }) => new Date(lastHeartbeatMs))}::timestamptz[],
      ${updates.map(({ cloneSigns }) => cloneSigns)}::int[]
    ) as u (org_id, device_id, boot_id, sequence, earlier_boots, last_heartbeat_time, clone_signs)
    where p.org_id = u.org_id and p.device_id = u.device_id`.execute(tx);
}

async function writeVersions(
  tx: Transaction<DeviceRegistryTables>,
  rows: ReadonlyMap<string, PresenceRow>,
  versions: ReadonlyMap<string, { sdkVersion: string; osVersion: string; appVersion: string }>,
): Promise<void> {
  const changed = [...versions].flatMap(([key, after]) => {
    const row = rows.get(key);
    if (row === undefined || isSameVersions(versionsOf(row), after)) return [];
    return [{ row, after }];
  });
  if (changed.length === 0) return;
  await sql`update devices d set sdk_version = u.sdk_version, os_version = u.os_version, app_version = u.app_version,
      revision = d.revision + 1, update_time = date_trunc('milliseconds', clock_timestamp())
    from unnest(
      ${changed.map(({ row }) => row.org_id)}::text[],
      ${changed.map(({ row }) => row.device_id)}::text[],
      ${changed.map(({ after }) => after.sdkVersion)}::text[],
      ${changed.map(({ after }) => after.osVersion)}::text[],
      ${changed.map(({ after }) => after.appVersion)}::text[]
    ) as u (org_id, device_id, sdk_version, os_version, app_version)
    where d.org_id = u.org_id and d.id = u.device_id`.execute(tx);
}

function versionsOf(row: PresenceRow): { sdkVersion: string; osVersion: string; appVersion: string } {
  return { sdkVersion: row.sdk_version, osVersion: row.os_version, appVersion: row.app_version };
}

function isSameVersions(
  left: { sdkVersion: string; osVersion: string; appVersion: string },
  right: { sdkVersion: string; osVersion: string; appVersion: string },
): boolean {
  return (
    left.sdkVersion === right.sdkVersion && left.osVersion === right.osVersion && left.appVersion === right.appVersion
  );
}

function keyOf(orgId: string, deviceId: string): string {
  return `${orgId} ${deviceId}`;
}

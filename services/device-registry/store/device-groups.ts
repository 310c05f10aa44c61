import type { Call } from "@octomesh/mesh/call";
import type { Clock } from "@octomesh/mesh/clock";
import { type Database, mapDatabaseError } from "@octomesh/mesh/database";
import { constraintOf } from "@octomesh/mesh/database-error";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { appendOutbox } from "@octomesh/mesh/outbox";
import { sql, type Transaction } from "kysely";
import { etagOfRevision } from "../device.ts";
import { deviceChange, deviceChangeTopic, encodeDeviceChange } from "../device-change.ts";
import { type DeviceGroupRecord, maxGroupsOfDevice } from "../device-group.ts";
import type { DeviceRegistryTables } from "../tables.ts";

/** Where a page of groups ended. */
export interface DeviceGroupPosition {
  readonly displayName: string;
  readonly id: string;
}

/** The part of the store that holds groups. */
export interface DeviceGroupStore {
  /** Makes an empty group within a transaction. RESOURCE_EXISTS if the name is taken. */
  create(
    tx: Transaction<DeviceRegistryTables>,
    group: { orgId: string; displayName: string; description: string },
  ): Promise<DeviceGroupRecord>;
  /** A group of the organisation. RESOURCE_NOT_FOUND if there is none. */
  get(orgId: string, id: string): Promise<DeviceGroupRecord>;
  /** Up to `limit` groups by name, after a position. */
  list(orgId: string, page: { after: DeviceGroupPosition | undefined; limit: number }): Promise<DeviceGroupRecord[]>;
  /** Changes name and description. ETAG_MISMATCH if the group changed since, RESOURCE_EXISTS if the name is taken. */
  update(
    call: Call,
    change: { id: string; displayName?: string; description?: string; etag: string },
  ): Promise<DeviceGroupRecord>;
  /** Deletes a group; its devices stay. One that does not exist (any more) is RESOURCE_NOT_FOUND. */
  delete(call: Call, id: string): Promise<void>;
  /**
   * Puts devices into a group; those that are in it stay. RESOURCE_NOT_FOUND names the first device that the organisation
   * does not have; QUOTA_EXCEEDED one that is in as many groups as it may be. Then nothing changes.
   */
  addDevices(call: Call, id: string, deviceIds: readonly string[]): Promise<DeviceGroupRecord>;
  /** Takes devices out of a group; those that are not in it are passed over. */
  removeDevices(call: Call, id: string, deviceIds: readonly string[]): Promise<DeviceGroupRecord>;
}

interface DeviceGroupRow {
  org_id: string;
  id: string;
  display_name: string;
  description: string;
  device_count: bigint;
  revision: bigint;
  create_time: Date;
  update_time: Date;
}

/** Opens the groups part of the store. */
export function deviceGroupStore(database: Database<DeviceRegistryTables>, clock: Clock): DeviceGroupStore {
  return {
    async create(tx, group) {
      const id = newId("grp", clock.now());
      const time = new Date(clock.now());
      await sql`insert into device_groups (org_id, id, display_name, description, create_time, update_time)
        values (${group.orgId}, ${id}, ${group.displayName}, ${group.description}, ${time}, ${time})`
        .execute(tx)
        .catch((error: unknown) => {
          throw mapNameTaken(error, group.displayName);
        });
      return await readBack(tx, group.orgId, id);
    },

    async get(orgId, id) {
      return await database.read(orgId, (tx) => readBack(tx, orgId, id));
    },

    async list(orgId, { after, limit }) {
      const { rows } = await database.read(orgId, (tx) =>
        sql<DeviceGroupRow>`${selectGroup} where g.org_id = ${orgId}
          ${after === undefined ? sql`` : sql`and (g.display_name, g.id) > (${after.displayName}, ${after.id})`}
          order by g.display_name, g.id limit ${limit}`.execute(tx),
      );
      return rows.map(groupRecord);
    },

    async update(call, change) {
      return await database.write(call, async (tx) => {
        const before = await lock(tx, call.orgId, change.id);
        if (change.etag !== "" && change.etag !== etagOfRevision(before.revision)) {
          throw fail(Reason.ETAG_MISMATCH, "the group changed since it was read: read it again", { id: change.id });
        }
        await sql`update device_groups set display_name = coalesce(${change.displayName ?? null}, display_name),
            description = coalesce(${change.description ?? null}, description),
            revision = revision + 1, update_time = ${new Date(clock.now())}
          where org_id = ${call.orgId} and id = ${change.id}`
          .execute(tx)
          .catch((error: unknown) => {
            throw mapNameTaken(error, change.displayName ?? "");
          });
        return await readBack(tx, call.orgId, change.id);
      });
    },

    async delete(call, id) {
      await database.write(call, async (tx) => {
        await lock(tx, call.orgId, id);
        await sql`delete from device_groups where org_id = ${call.orgId} and id = ${id}`.execute(tx);
        await announce(tx, call.orgId, id, undefined);
      });
    },

    async addDevices(call, id, deviceIds) {
      const { orgId } = call;
      return await database.write(call, async (tx) => {
        await lock(tx, orgId, id);
        const wanted = [...new Set(deviceIds)].sort();
        // The lock keeps two groups from filling the last place of a device at once.
        const { rows: known } = await sql<{ id: string }>`select id from devices
          where org_id = ${orgId} and id = any(${wanted}::text[]) and state <> 'reserved' order by id
          for update`.execute(tx);
        const missing = firstMissing(wanted, known);
        if (missing !== undefined) {
          throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such device", { type: "device", id: missing });
        }
        const { rows: added } = await sql<{ device_id: string }>`
          insert into device_group_members (org_id, group_id, device_id)
          select ${orgId}, ${id}, unnest(${wanted}::text[]) on conflict do nothing returning device_id`.execute(tx);
        const changed = added.map((row) => row.device_id);
        if (changed.length > 0) {
          await assertRoom(tx, orgId, changed);
          await touch(tx, orgId, id, clock);
          await announce(tx, orgId, id, changed);
        }
        return await readBack(tx, orgId, id);
      });
    },

    async removeDevices(call, id, deviceIds) {
      const { orgId } = call;
      return await database.write(call, async (tx) => {
        await lock(tx, orgId, id);
        const { rows } = await sql<{ device_id: string }>`delete from device_group_members
          where org_id = ${orgId} and group_id = ${id} and device_id = any(${[...deviceIds]}::text[])
          returning device_id`.execute(tx);
        if (rows.length > 0) {
          await touch(tx, orgId, id, clock);
          await announce(
            tx,
            orgId,
            id,
            rows.map((row) => row.device_id),
          );
        }
        return await readBack(tx, orgId, id);
      });
    },
  };
}

const selectGroup = sql`select g.org_id, g.id, g.display_name, g.description, g.revision, g.create_time, g.update_time,
    (select count(*) from device_group_members m where m.org_id = g.org_id and m.group_id = g.id) as device_count
  from device_groups g`;

async function readBack(tx: Transaction<DeviceRegistryTables>, orgId: string, id: string): Promise<DeviceGroupRecord> {
  const { rows } = await sql<DeviceGroupRow>`${selectGroup} where g.org_id = ${orgId} and g.id = ${id}`.execute(tx);
  if (rows[0] === undefined) throw notFound(id);
  return groupRecord(rows[0]);
}

async function lock(tx: Transaction<DeviceRegistryTables>, orgId: string, id: string): Promise<{ revision: bigint }> {
  const { rows } = await sql<{ revision: bigint }>`select revision from device_groups
    where org_id = ${orgId} and id = ${id} for update`.execute(tx);
  if (rows[0] === undefined) throw notFound(id);
  return rows[0];
}

async function touch(tx: Transaction<DeviceRegistryTables>, orgId: string, id: string, clock: Clock): Promise<void> {
  await sql`update device_groups set revision = revision + 1, update_time = ${new Date(clock.now())}
    where org_id = ${orgId} and id = ${id}`.execute(tx);
}

async function assertRoom(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  deviceIds: readonly string[],
): Promise<void> {
  const { rows } = await sql<{ device_id: string }>`select device_id from device_group_members
    where org_id = ${orgId} and device_id = any(${[...deviceIds]}::text[])
    group by device_id having count(*) > ${maxGroupsOfDevice} order by device_id limit 1`.execute(tx);
  const full = rows[0];
  if (full === undefined) return;
  throw fail(Reason.QUOTA_EXCEEDED, `a device is in at most ${maxGroupsOfDevice} groups`, {
    type: "device",
    id: full.device_id,
    limit: String(maxGroupsOfDevice),
  });
}

async function announce(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  groupId: string,
  deviceIds: readonly string[] | undefined,
): Promise<void> {
  await appendOutbox(tx, {
    topic: deviceChangeTopic,
    orgId,
    key: groupId,
    payload: encodeDeviceChange(deviceChange(deviceIds)),
  });
}

function firstMissing(wanted: readonly string[], known: readonly { id: string }[]): string | undefined {
  const ids = new Set(known.map((row) => row.id));
  return wanted.find((id) => !ids.has(id));
}

function groupRecord(row: DeviceGroupRow): DeviceGroupRecord {
  return {
    orgId: row.org_id,
    id: row.id,
    displayName: row.display_name,
    description: row.description,
    deviceCount: row.device_count,
    createMs: row.create_time.getTime(),
    updateMs: row.update_time.getTime(),
    revision: row.revision,
  };
}

function mapNameTaken(error: unknown, displayName: string): unknown {
  if (constraintOf(error) !== "device_groups_name") return mapDatabaseError(error);
  return fail(Reason.RESOURCE_EXISTS, "a group of this name exists", {
    type: "device_group",
    display_name: displayName,
  });
}

function notFound(id: string): Error {
  return fail(Reason.RESOURCE_NOT_FOUND, "there is no such group", { type: "device_group", id });
}

import type { Call } from "@octomesh/mesh/call";
import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import { fail, Reason } from "@octomesh/mesh/errors";
import { appendOutbox } from "@octomesh/mesh/outbox";
import { sql, type Transaction } from "kysely";
import { type DeviceRecord, etagOfRevision } from "../device.ts";
import { deviceChange, deviceChangeTopic, encodeDeviceChange } from "../device-change.ts";
import type { DeviceFacts } from "../device-facts.ts";
import { type Presence, presenceBounds } from "../presence.ts";
import type { StoredState } from "../registration.ts";
import type { DeviceRegistryTables } from "../tables.ts";

/** Which devices a list holds; absent conditions hold for all. */
export interface DeviceFilter {
  readonly state?: DeviceRecord["state"];
  readonly platform?: number;
  readonly groupId?: string;
  readonly presence?: Presence;
  readonly deviceIdentifier?: string;
}

/** Where a page of devices ended. */
export interface DevicePosition {
  readonly createMs: number;
  readonly id: string;
}

/** The registrations of a device before a revocation, by which one that came in between is noticed. */
export interface RegistrationMark {
  readonly registrationId: string | undefined;
  readonly pendingRegistrationId: string | undefined;
}

/** The part of the store that holds devices. */
export interface DeviceStore {
  /** A device of the organisation. RESOURCE_NOT_FOUND if there is none. */
  get(orgId: string, id: string): Promise<DeviceRecord>;
  /** Up to `limit` devices, newest first, after a position. */
  list(
    orgId: string,
    filter: DeviceFilter,
    page: { after: DevicePosition | undefined; limit: number },
    presence: { nowMs: number; heartbeatIntervalMs: number },
  ): Promise<DeviceRecord[]>;
  /** Changes name and labels. ETAG_MISMATCH if the device changed since. */
  update(
    call: Call,
    change: { id: string; displayName?: string; labels?: Readonly<Record<string, string>>; etag: string },
  ): Promise<DeviceRecord>;
  /** Lets a waiting device act. ILLEGAL_TRANSITION if it was revoked; an active one stays as it is. */
  approve(call: Call, id: string): Promise<DeviceRecord>;
  /** Lets the identifier be registered anew, once. */
  allowReenrolment(call: Call, id: string): Promise<DeviceRecord>;
  /** What registrations a device has now. RESOURCE_NOT_FOUND if there is no such device. */
  mark(orgId: string, id: string): Promise<RegistrationMark>;
  /**
   * Revokes a device; one that is revoked stays so. `overtaken` says that a registration came in since the mark, whose
   * credential must be revoked too.
   */
  revoke(call: Call, id: string, mark: RegistrationMark): Promise<{ device: DeviceRecord; overtaken: boolean }>;
  /** The facts of devices of one organisation, 1000 at most; absent for those it does not have. */
  facts(orgId: string, ids: readonly string[]): Promise<Map<string, DeviceFacts>>;
}

interface DeviceRow {
  org_id: string;
  id: string;
  device_identifier: string;
  display_name: string;
  platform: number;
  os_version: string;
  sdk_version: string;
  app_version: string;
  manufacturer: string;
  hardware_model: string;
  labels: Record<string, string>;
  state: DeviceRecord["state"];
  reenrolment_granted: boolean;
  revision: bigint;
  create_time: Date;
  update_time: Date;
  last_heartbeat_time: Date | null;
  clone_signs: number | null;
  group_ids: string[];
}

/** Opens the devices part of the store. */
export function deviceStore(database: Database<DeviceRegistryTables>, clock: Clock): DeviceStore {
  return {
    async get(orgId, id) {
      const device = await database.read(orgId, (tx) => readDevice(tx, orgId, id));
      if (device === undefined) throw notFound(id);
      return device;
    },

    async list(orgId, filter, page, presence) {
      const { after, limit } = page;
      const { rows } = await database.read(orgId, (tx) =>
        sql<DeviceRow>`${selectDevice}
          where d.org_id = ${orgId} and d.state <> 'reserved'
            ${filter.state === undefined ? sql`` : sql`and d.state = ${filter.state}`}
            ${filter.platform === undefined ? sql`` : sql`and d.platform = ${filter.platform}`}
            ${filter.deviceIdentifier === undefined ? sql`` : sql`and d.device_identifier = ${filter.deviceIdentifier}`}
            ${
              filter.groupId === undefined
                ? sql``
                : sql`and exists (select from device_group_members g
                    where g.org_id = d.org_id and g.group_id = ${filter.groupId} and g.device_id = d.id)`
            }
            ${filter.presence === undefined ? sql`` : presenceCondition(filter.presence, presence)}
            ${after === undefined ? sql`` : sql`and (d.create_time, d.id) < (${new Date(after.createMs)}, ${after.id})`}
          order by d.create_time desc, d.id desc limit ${limit}`.execute(tx),
      );
      return rows.map(deviceRecord);
    },

    async update(call, change) {
      return await database.write(call, async (tx) => {
        const before = await lock(tx, call.orgId, change.id);
        if (change.etag !== "" && change.etag !== etagOfRevision(before.revision)) {
          throw fail(Reason.ETAG_MISMATCH, "the device changed since it was read: read it again", { id: change.id });
        }
        const labels = change.labels === undefined ? null : JSON.stringify(change.labels);
        await sql`update devices set display_name = coalesce(${change.displayName ?? null}, display_name),
            labels = coalesce(${labels}::jsonb, labels), revision = revision + 1, update_time = ${now(clock)}
          where org_id = ${call.orgId} and id = ${change.id}`.execute(tx);
        return await readBack(tx, call.orgId, change.id);
      });
    },

    async approve(call, id) {
      return await database.write(call, async (tx) => {
        const { state } = await lock(tx, call.orgId, id);
        if (state === "revoked") {
          throw fail(Reason.ILLEGAL_TRANSITION, "a revoked device cannot be approved: allow its re-enrolment", {
            id,
            state,
          });
        }
        if (state === "awaiting_approval") {
          await sql`update devices set state = 'active', revision = revision + 1, update_time = ${now(clock)}
            where org_id = ${call.orgId} and id = ${id}`.execute(tx);
          await announce(tx, call.orgId, id);
        }
        return await readBack(tx, call.orgId, id);
      });
    },

    async allowReenrolment(call, id) {
      return await database.write(call, async (tx) => {
        await lock(tx, call.orgId, id);
        await sql`update devices set reenrolment_granted = true, revision = revision + 1, update_time = ${now(clock)}
          where org_id = ${call.orgId} and id = ${id} and not reenrolment_granted`.execute(tx);
        return await readBack(tx, call.orgId, id);
      });
    },

    async mark(orgId, id) {
      const { rows } = await database.read(orgId, (tx) =>
        sql<{ registration_id: string | null; pending_registration_id: string | null }>`
          select registration_id, pending_registration_id from devices
          where org_id = ${orgId} and id = ${id} and state <> 'reserved'`.execute(tx),
      );
      const row = rows[0];
      if (row === undefined) throw notFound(id);
      return {
        registrationId: row.registration_id ?? undefined,
        pendingRegistrationId: row.pending_registration_id ?? undefined,
      };
    },

    async revoke(call, id, mark) {
      return await database.write(call, async (tx) => {
        const before = await lock(tx, call.orgId, id);
        const overtaken =
          (before.registration_id ?? undefined) !== mark.registrationId || before.pending_registration_id !== null;
        if (before.state !== "revoked" || before.reenrolment_granted || before.pending_registration_id !== null) {
          await sql`update devices set state = 'revoked', reenrolment_granted = false, pending_registration_id = null,
              pending_token_id = null, pending_key_digest = null, pending_time = null,
              revision = revision + 1, update_time = ${now(clock)}
            where org_id = ${call.orgId} and id = ${id}`.execute(tx);
          await announce(tx, call.orgId, id);
        }
        return { device: await readBack(tx, call.orgId, id), overtaken };
      });
    },

    async facts(orgId, ids) {
      const { rows } = await database.read(orgId, (tx) =>
        sql<{ id: string; state: StoredState; group_ids: string[] }>`select d.id, d.state, ${groupIds} as group_ids
          from devices d where d.org_id = ${orgId} and d.id = any(${[...ids]}::text[])
            and d.state <> 'reserved'`.execute(tx),
      );
      return new Map(rows.map((row) => [row.id, { state: row.state, groupIds: row.group_ids }]));
    },
  };
}

/** Reads one device that is more than reserved, in a transaction that is under way. */
export async function readDevice(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  id: string,
): Promise<DeviceRecord | undefined> {
  const { rows } = await sql<DeviceRow>`${selectDevice}
    where d.org_id = ${orgId} and d.id = ${id} and d.state <> 'reserved'`.execute(tx);
  return rows[0] === undefined ? undefined : deviceRecord(rows[0]);
}

const groupIds = sql`array(select m.group_id from device_group_members m
  where m.org_id = d.org_id and m.device_id = d.id order by m.group_id)`;

const selectDevice = sql`select d.org_id, d.id, d.device_identifier, d.display_name, d.platform, d.os_version,
    d.sdk_version, d.app_version, d.manufacturer, d.hardware_model, d.labels, d.state, d.reenrolment_granted,
    d.revision, d.create_time, d.update_time, p.last_heartbeat_time, p.clone_signs, ${groupIds} as group_ids
  from devices d left join device_presence p on p.org_id = d.org_id and p.device_id = d.id`;

function presenceCondition(presence: Presence, at: { nowMs: number; heartbeatIntervalMs: number }) {
  const bounds = presenceBounds(at.nowMs, at.heartbeatIntervalMs);
  const onlineSince = new Date(bounds.onlineSinceMs);
  const staleSince = new Date(bounds.staleSinceMs);
  switch (presence) {
    case "online":
      return sql`and p.last_heartbeat_time >= ${onlineSince}`;
    case "stale":
      return sql`and p.last_heartbeat_time >= ${staleSince} and p.last_heartbeat_time < ${onlineSince}`;
    case "offline":
      return sql`and (p.last_heartbeat_time is null or p.last_heartbeat_time < ${staleSince})`;
  }
}

interface LockedDevice {
  state: DeviceRecord["state"];
  revision: bigint;
  reenrolment_granted: boolean;
  registration_id: string | null;
  pending_registration_id: string | null;
}

async function lock(tx: Transaction<DeviceRegistryTables>, orgId: string, id: string): Promise<LockedDevice> {
  const { rows } = await sql<LockedDevice>`
    select state, revision, reenrolment_granted, registration_id, pending_registration_id from devices
    where org_id = ${orgId} and id = ${id} and state <> 'reserved' for update`.execute(tx);
  if (rows[0] === undefined) throw notFound(id);
  return rows[0];
}

async function readBack(tx: Transaction<DeviceRegistryTables>, orgId: string, id: string): Promise<DeviceRecord> {
  const device = await readDevice(tx, orgId, id);
  if (device === undefined) throw notFound(id);
  return device;
}

async function announce(tx: Transaction<DeviceRegistryTables>, orgId: string, id: string): Promise<void> {
  await appendOutbox(tx, {
    topic: deviceChangeTopic,
    orgId,
    key: id,
    payload: encodeDeviceChange(deviceChange([id])),
  });
}

function deviceRecord(row: DeviceRow): DeviceRecord {
  return {
    orgId: row.org_id,
    id: row.id,
    deviceIdentifier: row.device_identifier,
    displayName: row.display_name,
    platform: row.platform,
    osVersion: row.os_version,
    sdkVersion: row.sdk_version,
    appVersion: row.app_version,
    manufacturer: row.manufacturer,
    hardwareModel: row.hardware_model,
    labels: row.labels,
    state: row.state,
    groupIds: row.group_ids,
    reenrolmentGranted: row.reenrolment_granted,
    cloneSigns: row.clone_signs ?? 0,
    lastHeartbeatMs: row.last_heartbeat_time?.getTime(),
    createMs: row.create_time.getTime(),
    updateMs: row.update_time.getTime(),
    revision: row.revision,
  };
}

function now(clock: Clock): Date {
  return new Date(clock.now());
}

function notFound(id: string): Error {
  return fail(Reason.RESOURCE_NOT_FOUND, "there is no such device", { type: "device", id });
}

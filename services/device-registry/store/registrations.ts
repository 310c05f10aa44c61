import type { Call } from "@octomesh/mesh/call";
import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import { newId } from "@octomesh/mesh/ids";
import { appendOutbox } from "@octomesh/mesh/outbox";
import { sql, type Transaction } from "kysely";
import type { DeviceRecord } from "../device.ts";
import { deviceChange, deviceChangeTopic, encodeDeviceChange } from "../device-change.ts";
import { maxGroupsOfDevice } from "../device-group.ts";
import {
  decideRegistration,
  isSameKey,
  type KnownIdentifier,
  type RefusalCause,
  type Registration,
  type RegistrationAttempt,
  type StoredState,
  stateAfterRegistration,
} from "../registration.ts";
import type { DeviceRegistryTables } from "../tables.ts";
import { readDevice } from "./devices.ts";

/** What a device says of itself as it registers. Empty values leave what is known. */
export interface DeviceDescription {
  readonly displayName: string;
  readonly platform: number;
  readonly osVersion: string;
  readonly sdkVersion: string;
  readonly appVersion: string;
  readonly manufacturer: string;
  readonly hardwareModel: string;
  readonly labels: Readonly<Record<string, string>>;
}

/** What became of an attempt. */
export type Reservation =
  /** Ask identity for the credential of this registration, then complete it. */
  | {
      readonly kind: "proceed";
      readonly deviceId: string;
      readonly registrationId: string;
      /** The registration was completed before: this is its answer again. */
      readonly repeated: boolean;
    }
  | { readonly kind: "refuse"; readonly deviceId: string; readonly cause: RefusalCause }
  /** Another attempt came and went at the same moment: to be repeated. */
  | { readonly kind: "busy" };

/** Reservations that were never completed are cleared away after this many milliseconds. */
export const abandonedAfterMs = 86_400_000;

const maxCloneSigns = 1_000_000;

/** The part of the store that registers devices. */
export interface RegistrationStore {
  /**
   * Decides about an attempt and writes down what follows, before identity is asked: a crash after that is recovered by
   * the same attempt made again. A refusal is counted as a sign of a clone.
   */
  reserve(orgId: string, deviceIdentifier: string, attempt: RegistrationAttempt): Promise<Reservation>;
  /**
   * Completes a registration whose credential was issued. Completing again changes nothing and leaves no second audit
   * event.
   */
  complete(call: Call, registration: IssuedRegistration): Promise<Completion>;
  /** Gives up a registration that identity refused. An identifier that was only reserved is free again. */
  abandon(orgId: string, deviceId: string, registrationId: string): Promise<void>;
  /** Deletes reservations that nobody completed for a day. Answers how many. */
  sweep(): Promise<number>;
}

/** How a completion ended. */
export type Completion =
  | { readonly kind: "completed"; readonly device: DeviceRecord }
  /** The device was revoked meanwhile: the credential must be too. */
  | { readonly kind: "revoked" }
  /** The registration lapsed, and another took its place. */
  | { readonly kind: "overtaken" };

/** A registration as identity answered it. */
export interface IssuedRegistration {
  readonly deviceId: string;
  readonly registrationId: string;
  readonly description: DeviceDescription;
  readonly approvalRequired: boolean;
  /** Groups of the token. Those that do not exist any more are left out. */
  readonly groupIds: readonly string[];
}

interface IdentifierRow {
  id: string;
  state: StoredState;
  reenrolment_granted: boolean;
  registration_id: string | null;
  registration_token_id: string | null;
  registration_key_digest: Buffer | null;
  registration_time: Date | null;
  pending_registration_id: string | null;
  pending_token_id: string | null;
  pending_key_digest: Buffer | null;
  pending_time: Date | null;
}

/** Opens the registration part of the store. */
export function registrationStore(database: Database<DeviceRegistryTables>, clock: Clock): RegistrationStore {
  return {
    async reserve(orgId, deviceIdentifier, attempt) {
      return await database.ingest([orgId], async (tx) => {
        const row = await lockIdentifier(tx, orgId, deviceIdentifier);
        if (row === undefined) return await reserveNew(tx, orgId, deviceIdentifier, attempt);
        return await reserveKnown(tx, orgId, row, attempt);
      });
    },

    async complete(call, issued) {
      const { orgId } = call;
      return await database.write(call, async (tx): Promise<Completion> => {
        const row = await lockDevice(tx, orgId, issued.deviceId);
        if (row === undefined) return { kind: "overtaken" };
        const isPending = row.pending_registration_id === issued.registrationId;
        if (row.state === "revoked" && !isPending) return { kind: "revoked" };
        if (isPending) await completePending(tx, orgId, row, issued, new Date(clock.now()));
        else if (row.registration_id === issued.registrationId) call.audit?.skip("repeated");
        else return { kind: "overtaken" };
        const device = await readDevice(tx, orgId, row.id);
        return device === undefined ? { kind: "overtaken" } : { kind: "completed", device };
      });
    },

    async abandon(orgId, deviceId, registrationId) {
      await database.ingest([orgId], async (tx) => {
        await sql`delete from devices where org_id = ${orgId} and id = ${deviceId}
          and pending_registration_id = ${registrationId} and state = 'reserved'`.execute(tx);
        await sql`update devices set pending_registration_id = null, pending_token_id = null, pending_key_digest = null,
            pending_time = null
          where org_id = ${orgId} and id = ${deviceId} and pending_registration_id = ${registrationId}`.execute(tx);
      });
    },

    async sweep() {
      const before = new Date(clock.now() - abandonedAfterMs);
      const result = await database.system((tx) =>
        sql`delete from devices where state = 'reserved' and pending_time < ${before}`.execute(tx),
      );
      return Number(result.numAffectedRows ?? 0n);
    },
  };
}

async function lockIdentifier(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  deviceIdentifier: string,
): Promise<IdentifierRow | undefined> {
  const { rows } = await sql<IdentifierRow>`${selectIdentifier}
    where org_id = ${orgId} and device_identifier = ${deviceIdentifier} for update`.execute(tx);
  return rows[0];
}

async function lockDevice(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  deviceId: string,
): Promise<IdentifierRow | undefined> {
  const { rows } = await sql<IdentifierRow>`${selectIdentifier}
    where org_id = ${orgId} and id = ${deviceId} for update`.execute(tx);
  return rows[0];
}

const selectIdentifier = sql`select id, state, reenrolment_granted,
    registration_id, registration_token_id, registration_key_digest, registration_time,
    pending_registration_id, pending_token_id, pending_key_digest, pending_time
  from devices`;

async function reserveNew(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  deviceIdentifier: string,
  attempt: RegistrationAttempt,
): Promise<Reservation> {
  const time = new Date(attempt.time);
  const deviceId = newId("dev", attempt.time);
  const registrationId = newId("reg", attempt.time);
  const { rows } = await sql<{ id: string }>`insert into devices (org_id, id, device_identifier, state,
      pending_registration_id, pending_token_id, pending_key_digest, pending_time, create_time, update_time)
    values (${orgId}, ${deviceId}, ${deviceIdentifier}, 'reserved',
      ${registrationId}, ${attempt.tokenId}, ${bytes(attempt.keyDigest)}, ${time}, ${time}, ${time})
    on conflict (org_id, device_identifier) do nothing returning id`.execute(tx);
  if (rows.length > 0) return { kind: "proceed", deviceId, registrationId, repeated: false };
  // Another attempt reserved it between the look and the insert, and has committed.
  const row = await lockIdentifier(tx, orgId, deviceIdentifier);
  if (row === undefined) return { kind: "busy" };
  return await reserveKnown(tx, orgId, row, attempt);
}

async function reserveKnown(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  row: IdentifierRow,
  attempt: RegistrationAttempt,
): Promise<Reservation> {
  const known = knownIdentifier(row);
  const decision = decideRegistration(known, attempt);
  switch (decision.kind) {
    case "refuse":
      if (row.state !== "reserved") await countCloneSign(tx, orgId, row.id);
      return { kind: "refuse", deviceId: row.id, cause: decision.cause };
    case "repeat": {
      const { registrationId } = decision;
      return { kind: "proceed", deviceId: row.id, registrationId, repeated: row.registration_id === registrationId };
    }
    default: {
      // The state stays what it is until identity has agreed; identity then cuts off the installation before.
      const registrationId = newId("reg", attempt.time);
      await sql`update devices set pending_registration_id = ${registrationId}, pending_token_id = ${attempt.tokenId},
          pending_key_digest = ${bytes(attempt.keyDigest)}, pending_time = ${new Date(attempt.time)}
        where org_id = ${orgId} and id = ${row.id}`.execute(tx);
      return { kind: "proceed", deviceId: row.id, registrationId, repeated: false };
    }
  }
}

async function completePending(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  row: IdentifierRow,
  completed: IssuedRegistration,
  now: Date,
): Promise<void> {
  const { description } = completed;
  const { current, pending } = knownIdentifier(row);
  const sameInstallation = isSameKey(current?.keyDigest, pending?.keyDigest);
  const state = stateAfterRegistration({ state: row.state, sameInstallation }, completed.approvalRequired);
  const keepsGrant = sameInstallation && row.state !== "revoked";
  const labels = Object.keys(description.labels).length === 0 ? null : JSON.stringify(description.labels);
  const keep = (value: string) => (value === "" ? null : value);
  await sql`update devices set
      state = ${state},
      reenrolment_granted = reenrolment_granted and ${keepsGrant},
      registration_id = pending_registration_id,
      registration_token_id = pending_token_id,
      registration_key_digest = pending_key_digest,
      registration_time = pending_time,
      pending_registration_id = null,
      pending_token_id = null,
      pending_key_digest = null,
      pending_time = null,
      display_name = coalesce(${keep(description.displayName)}, display_name),
      platform = coalesce(${description.platform === 0 ? null : description.platform}, platform),
      os_version = coalesce(${keep(description.osVersion)}, os_version),
      sdk_version = coalesce(${keep(description.sdkVersion)}, sdk_version),
      app_version = coalesce(${keep(description.appVersion)}, app_version),
      manufacturer = coalesce(${keep(description.manufacturer)}, manufacturer),
      hardware_model = coalesce(${keep(description.hardwareModel)}, hardware_model),
      labels = coalesce(${labels}::jsonb, labels),
      revision = revision + 1,
      update_time = ${now}
    where org_id = ${orgId} and id = ${row.id}`.execute(tx);
  // Another installation counts its boots from the beginning.
  await sql`insert into device_presence (org_id, device_id) values (${orgId}, ${row.id})
    on conflict (org_id, device_id) do update set
      boot_id = case when ${sameInstallation} then device_presence.boot_id else '' end,
      sequence = case when ${sameInstallation} then device_presence.sequence else -1 end,
      earlier_boots = case when ${sameInstallation} then device_presence.earlier_boots else '[]' end`.execute(tx);
  if (!sameInstallation) {
    await sql`delete from observed_models where org_id = ${orgId} and device_id = ${row.id}`.execute(tx);
    await sql`delete from observed_states where org_id = ${orgId} and device_id = ${row.id}`.execute(tx);
  }
  await joinGroups(tx, orgId, row.id, completed.groupIds);
  await appendOutbox(tx, {
    topic: deviceChangeTopic,
    orgId,
    key: row.id,
    payload: encodeDeviceChange(deviceChange([row.id])),
  });
}

async function joinGroups(
  tx: Transaction<DeviceRegistryTables>,
  orgId: string,
  deviceId: string,
  groupIds: readonly string[],
): Promise<void> {
  if (groupIds.length === 0) return;
  await sql`insert into device_group_members (org_id, group_id, device_id)
    select org_id, id, ${deviceId} from device_groups g
    where org_id = ${orgId} and id = any(${[...groupIds]}::text[])
      and not exists (select from device_group_members m
        where m.org_id = g.org_id and m.group_id = g.id and m.device_id = ${deviceId})
    order by id
    limit greatest(0, ${maxGroupsOfDevice}::bigint - (select count(*) from device_group_members
      where org_id = ${orgId} and device_id = ${deviceId}))
    on conflict do nothing`.execute(tx);
}

async function countCloneSign(tx: Transaction<DeviceRegistryTables>, orgId: string, deviceId: string): Promise<void> {
  await sql`update device_presence set clone_signs = least(clone_signs + 1, ${maxCloneSigns})
    where org_id = ${orgId} and device_id = ${deviceId}`.execute(tx);
}

function knownIdentifier(row: IdentifierRow): KnownIdentifier {
  return {
    state: row.state,
    reenrolmentGranted: row.reenrolment_granted,
    current: registrationOf(
      row.registration_id,
      row.registration_token_id,
      row.registration_key_digest,
      row.registration_time,
    ),
    pending: registrationOf(
      row.pending_registration_id,
      row.pending_token_id,
      row.pending_key_digest,
      row.pending_time,
    ),
  };
}

function registrationOf(
  id: string | null,
  tokenId: string | null,
  keyDigest: Buffer | null,
  time: Date | null,
): Registration | undefined {
  if (id === null || time === null) return undefined;
  return { id, tokenId: tokenId ?? "", keyDigest: keyDigest ?? undefined, time: time.getTime() };
}

function bytes(digest: Uint8Array | undefined): Buffer | null {
  return digest === undefined ? null : Buffer.from(digest);
}

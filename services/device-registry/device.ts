import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type Device,
  DeviceSchema,
  Device_Presence as WirePresence,
  Device_State as WireState,
} from "@octomesh/proto/octomesh/device/v1/device_pb";
import { type Presence, presenceOf } from "./presence.ts";
import type { StoredState } from "./registration.ts";

/** A device as it is stored. Times in milliseconds since the Unix epoch. */
export interface DeviceRecord {
  readonly orgId: string;
  readonly id: string;
  readonly deviceIdentifier: string;
  readonly displayName: string;
  /** Number of octomesh.device.v1.Platform. */
  readonly platform: number;
  readonly osVersion: string;
  readonly sdkVersion: string;
  readonly appVersion: string;
  readonly manufacturer: string;
  readonly hardwareModel: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly state: Exclude<StoredState, "reserved">;
  readonly groupIds: readonly string[];
  readonly reenrolmentGranted: boolean;
  readonly cloneSigns: number;
  readonly lastHeartbeatMs: number | undefined;
  readonly createMs: number;
  readonly updateMs: number;
  /** Counts changes. */
  readonly revision: bigint;
}

const wireStates = {
  awaiting_approval: WireState.AWAITING_APPROVAL,
  active: WireState.ACTIVE,
  revoked: WireState.REVOKED,
} as const;

const wirePresences: Record<Presence, WirePresence> = {
  online: WirePresence.ONLINE,
  stale: WirePresence.STALE,
  offline: WirePresence.OFFLINE,
};

/** The device as the contract shows it, at a given time. */
export function deviceMessage(record: DeviceRecord, at: { nowMs: number; heartbeatIntervalMs: number }): Device {
  const { lastHeartbeatMs } = record;
  return create(DeviceSchema, {
    id: record.id,
    orgId: record.orgId,
    deviceIdentifier: record.deviceIdentifier,
    displayName: record.displayName,
    platform: record.platform,
    osVersion: record.osVersion,
    sdkVersion: record.sdkVersion,
    appVersion: record.appVersion,
    manufacturer: record.manufacturer,
    hardwareModel: record.hardwareModel,
    labels: { ...record.labels },
    state: wireStates[record.state],
    presence: wirePresences[presenceOf(lastHeartbeatMs, at.nowMs, at.heartbeatIntervalMs)],
    lastHeartbeatTime: lastHeartbeatMs === undefined ? undefined : timestampFromMs(lastHeartbeatMs),
    groupIds: [...record.groupIds],
    reenrolmentGranted: record.reenrolmentGranted,
    cloneSigns: record.cloneSigns,
    createTime: timestampFromMs(record.createMs),
    updateTime: timestampFromMs(record.updateMs),
    etag: etagOfRevision(record.revision),
  });
}

/** The stored state that a filter of the contract names; undefined for "any". */
export function storedStateOf(state: WireState): DeviceRecord["state"] | undefined {
  switch (state) {
    case WireState.AWAITING_APPROVAL:
      return "awaiting_approval";
    case WireState.ACTIVE:
      return "active";
    case WireState.REVOKED:
      return "revoked";
    default:
      return undefined;
  }
}

/** The presence that a filter of the contract names; undefined for "any". */
export function presenceFilterOf(presence: WirePresence): Presence | undefined {
  switch (presence) {
    case WirePresence.ONLINE:
      return "online";
    case WirePresence.STALE:
      return "stale";
    case WirePresence.OFFLINE:
      return "offline";
    default:
      return undefined;
  }
}

/** The etag of a row that has changed so many times. */
export function etagOfRevision(revision: bigint): string {
  return `r${revision}`;
}

import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type DeviceGroup, DeviceGroupSchema } from "@octomesh/proto/octomesh/device/v1/device_group_pb";
import { etagOfRevision } from "./device.ts";

/** A device is in at most this many groups (the contract's bound on `group_ids`). */
export const maxGroupsOfDevice = 64;

/** A group as it is stored. Times in milliseconds since the Unix epoch. */
export interface DeviceGroupRecord {
  readonly orgId: string;
  readonly id: string;
  readonly displayName: string;
  readonly description: string;
  readonly deviceCount: bigint;
  readonly createMs: number;
  readonly updateMs: number;
  /** Counts what was changed about the group; devices that join as they register do not count. */
  readonly revision: bigint;
}

/** The group as the contract shows it. */
export function deviceGroupMessage(record: DeviceGroupRecord): DeviceGroup {
  return create(DeviceGroupSchema, {
    id: record.id,
    orgId: record.orgId,
    displayName: record.displayName,
    description: record.description,
    deviceCount: record.deviceCount,
    createTime: timestampFromMs(record.createMs),
    updateTime: timestampFromMs(record.updateMs),
    etag: etagOfRevision(record.revision),
  });
}

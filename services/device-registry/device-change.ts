/** What changed about devices of one organisation, as the replicas of this service tell each other. */
export interface DeviceChange {
  /** Devices whose state or groups changed. */
  readonly deviceIds: readonly string[];
  /** Any device of the organisation may have changed, and `deviceIds` is empty. */
  readonly everyDevice: boolean;
}

/** Topic of the outbox that carries device changes. */
export const deviceChangeTopic = "devices";

/** A change names at most this many devices; one that concerns more says so of all. */
export const maxChangedDevices = 1000;

/** A change of these devices; of every device of the organisation if none are given or too many. */
export function deviceChange(deviceIds: readonly string[] | undefined): DeviceChange {
  if (deviceIds === undefined || deviceIds.length > maxChangedDevices) return { deviceIds: [], everyDevice: true };
  return { deviceIds, everyDevice: false };
}

/** The payload of the outbox event. */
export function encodeDeviceChange(change: DeviceChange): Uint8Array {
  return Buffer.from(JSON.stringify({ device_ids: change.deviceIds, every_device: change.everyDevice }));
}

/** Reads a payload. What cannot be read concerns every device: a newer replica may say more than this one knows. */
export function decodeDeviceChange(payload: Uint8Array): DeviceChange {
  try {
    const value: unknown = JSON.parse(Buffer.from(payload).toString("utf8"));
    if (typeof value !== "object" || value === null) return deviceChange(undefined);
    const ids = "device_ids" in value ? value.device_ids : undefined;
    const every = "every_device" in value && value.every_device === true;
    if (every || !Array.isArray(ids) || !ids.every((id) => typeof id === "string")) return deviceChange(undefined);
    return deviceChange(ids);
  } catch {
    return deviceChange(undefined);
  }
}

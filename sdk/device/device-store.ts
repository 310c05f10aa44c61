import { DeviceError } from "./device-error.ts";

/** What a device keeps of its registration. The client key and both tokens are secrets. */
export interface DeviceRecord {
  /** The identifier that the device gave itself. */
  deviceIdentifier: string;
  /** Random value that lets this installation, and no other, repeat a registration or a refresh. */
  clientKey: string;
  /** What the registration brought; absent before. */
  registration?: DeviceRegistrationRecord;
  /** The mesh withdrew the credential. */
  revoked?: boolean;
}

/** The part of a device's record that registration brings and refreshes renew. */
export interface DeviceRegistrationRecord {
  /** Id of the device, `dev_…`. */
  deviceId: string;
  /** The organisation, `org_…`. */
  orgId: string;
  /** The access token, a JWT. */
  accessToken: string;
  /** When it expires, milliseconds since the Unix epoch. */
  expireTimeMs: number;
  /** The refresh token, which is used once. */
  refreshToken: string;
  /** When it expires if it is not used, milliseconds since the Unix epoch; 0 if never. */
  refreshExpireTimeMs: number;
  /** The keys that manifests must be signed by, pinned at registration: id, and raw Ed25519 key in base64. */
  manifestKeys: { id: string; publicKey: string }[];
  /** How often to say that the device is alive, in milliseconds. */
  heartbeatIntervalMs: number;
}

/** Where a device's record is kept: a port, so that an app can bring the key store of its platform. */
export interface DeviceStore {
  /** The record as last saved; undefined if there is none. Throws a DeviceError for one that cannot be trusted. */
  load(): Promise<DeviceRecord | undefined>;
  /** Keeps the record, whole or not at all. It is durable when this resolves. */
  save(record: DeviceRecord): Promise<void>;
  /** Forgets the record. */
  clear(): Promise<void>;
  /** Runs a function while nobody else who shares the store runs one, other processes included. */
  exclusively<T>(run: () => Promise<T>): Promise<T>;
}

/** Longest record that is read, in bytes. */
export const maxRecordBytes = 64 * 1024;

/** Writes a record as text, for stores that keep text. */
export function encodeRecord(record: DeviceRecord): string {
  return `${JSON.stringify({ format: 1, ...record }, undefined, 2)}\n`;
}

/** Reads a record from text. Throws DeviceError STORE_CORRUPT for anything that is not one. */
export function decodeRecord(text: string): DeviceRecord {
  if (text.length > maxRecordBytes) throw corrupt("it is too long");
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw corrupt("it is not JSON", cause);
  }
  if (!isObject(value) || value.format !== 1) throw corrupt("it has an unknown format");
  const { deviceIdentifier, clientKey, revoked, registration } = value;
  if (!isText(deviceIdentifier) || !isText(clientKey)) throw corrupt("it names no device");
  if (registration !== undefined && !isRegistration(registration)) throw corrupt("its registration is incomplete");
  return {
    deviceIdentifier,
    clientKey,
    ...(registration === undefined ? {} : { registration }),
    ...(revoked === true ? { revoked } : {}),
  };
}

function isRegistration(value: unknown): value is DeviceRegistrationRecord {
  return (
    isObject(value) &&
    isText(value.deviceId) &&
    typeof value.orgId === "string" &&
    isText(value.accessToken) &&
    Number.isFinite(value.expireTimeMs) &&
    isText(value.refreshToken) &&
    Number.isFinite(value.refreshExpireTimeMs) &&
    Number.isFinite(value.heartbeatIntervalMs) &&
    Array.isArray(value.manifestKeys) &&
    value.manifestKeys.every((key: unknown) => isObject(key) && isText(key.id) && isText(key.publicKey))
  );
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isText(value: unknown): value is string {
  return typeof value === "string" && value.length > 0;
}

function corrupt(why: string, cause?: unknown): DeviceError {
  return new DeviceError("STORE_CORRUPT", `the stored device record cannot be used: ${why}`, { cause });
}

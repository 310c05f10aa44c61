import { timestampMs } from "@bufbuild/protobuf/wkt";
import { createClient, type Transport } from "@connectrpc/connect";
import type { DeviceCredential } from "@octomesh/proto/octomesh/identity/v1/device_credential_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import type { Credential } from "../credential.ts";
import { isReason } from "../reason.ts";
import { singleFlight } from "../single-flight.ts";
import { DeviceError } from "./device-error.ts";
import type { DeviceRecord, DeviceRegistrationRecord, DeviceStore } from "./device-store.ts";

/** Settings of a credential keeper. */
export interface CredentialKeeperOptions {
  store: DeviceStore;
  /** Reaches the mesh without a credential. */
  bare: Transport;
  /** How long before it expires an access token is renewed at the latest, in milliseconds. Default 30,000. */
  marginMs?: number;
  /** The clock, milliseconds since the Unix epoch. */
  now: () => number;
  /** Random numbers in [0, 1). */
  random: () => number;
  onRefreshed(registration: DeviceRegistrationRecord): void;
  /** The mesh has withdrawn the credential, for good. Told once. */
  onRevoked(): void;
  /** A refresh failed and may succeed later, or could not be stored. */
  onError(error: unknown): void;
}

/** Holds the credential of a registered device and keeps it fresh. */
export interface CredentialKeeper extends Required<Credential> {
  /** Takes the record that the store held or registration brought. */
  adopt(record: DeviceRecord): void;
  /** The registration; undefined before. */
  registration(): DeviceRegistrationRecord | undefined;
  /** Whether the mesh has withdrawn it. */
  isRevoked(): boolean;
  /** Refreshes now. Calls that come while a refresh is under way share it. */
  refresh(): Promise<void>;
  /** Stores again what could not be stored. */
  persist(): Promise<void>;
}

/**
 * Keeps a device's credential: renewed before it expires (30 s of margin, up to twice that at random so that a fleet
 * spreads), renewed when the mesh calls it expired, never twice at once, neither in this process nor among those that
 * share the store. When the mesh has withdrawn it, that is stored, told once, and every call fails with DeviceError
 * REVOKED without reaching the mesh.
 */
export function createCredentialKeeper(options: CredentialKeeperOptions): CredentialKeeper {
  const { store, bare, now, random } = options;
  const marginMs = options.marginMs ?? 30_000;
  let record: DeviceRecord | undefined;
  let spread = random();
  let isUnsaved = false;
  /** An access token that the mesh called expired, whatever the clock of the device says. */
  let spent: string | undefined;

  const isDue = ({ accessToken, expireTimeMs }: DeviceRegistrationRecord) =>
    accessToken === spent || expireTimeMs - marginMs * (1 + spread) <= now();

  function revoked(): DeviceError {
    return new DeviceError("REVOKED", "the mesh has withdrawn this device's credential");
  }

  async function revoke(): Promise<void> {
    if (record === undefined || record.revoked) return;
    record = { ...record, revoked: true };
    options.onRevoked();
    await save(record).catch(options.onError);
  }

  async function save(next: DeviceRecord): Promise<void> {
    isUnsaved = true;
    await store.save(next);
    isUnsaved = false;
  }

  const refreshed = singleFlight(() =>
    store.exclusively(async () => {
      // Whoever had the turn before may have refreshed already. What could not be saved here is newer than the store.
      const stored = isUnsaved ? record : await store.load();
      const known = record?.registration?.accessToken;
      if (stored?.registration !== undefined && stored.registration.accessToken !== known) record = stored;
      if (record?.registration === undefined) throw new DeviceError("NOT_REGISTERED", "the device is not registered");
      if (record.revoked) throw revoked();
      const { registration, clientKey } = record;
      if (!isDue(registration)) return;
      let answer: DeviceCredential;
      try {
        const client = createClient(DeviceCredentialService, bare);
        answer = await client.refreshDeviceCredential({ refreshToken: registration.refreshToken, clientKey });
      } catch (error) {
        if (isFinal(error)) {
          await revoke();
          throw revoked();
        }
        throw error;
      }
      const next = withCredential(registration, answer);
      record = { ...record, registration: next };
      spread = random();
      spent = undefined;
      await save(record).catch(options.onError);
      options.onRefreshed(next);
    }),
  );

  return {
    adopt(next) {
      record = next;
      isUnsaved = false;
    },
    registration: () => record?.registration,
    isRevoked: () => record?.revoked === true,
    async refresh() {
      spent = record?.registration?.accessToken;
      await refreshed();
    },
    async authorization() {
      if (record?.revoked) throw revoked();
      const held = record?.registration;
      if (held === undefined) throw new DeviceError("NOT_REGISTERED", "the device is not registered");
      if (isDue(held)) {
        try {
          await refreshed();
        } catch (error) {
          // A token that still has time is used until it has none.
          if (record?.revoked || held.accessToken === spent || held.expireTimeMs <= now()) throw error;
          options.onError(error);
        }
      }
      return `Bearer ${record?.registration?.accessToken ?? held.accessToken}`;
    },
    async renew(used, _bare, reason) {
      const held = record?.registration?.accessToken;
      if (held === undefined || record?.revoked) return false;
      if (`Bearer ${held}` !== used) return true;
      if (reason === "CREDENTIAL_REVOKED") {
        // Another process may have registered the device anew in the meantime.
        const stored = await store.load().catch(() => undefined);
        if (stored?.registration !== undefined && !stored.revoked && stored.registration.accessToken !== held) {
          record = stored;
          return true;
        }
        await revoke();
        return false;
      }
      spent = held;
      await refreshed();
      return `Bearer ${record?.registration?.accessToken}` !== used;
    },
    async persist() {
      if (isUnsaved && record !== undefined) await store.exclusively(async () => save(record as DeviceRecord));
    },
  };
}

/** The registration after a credential was issued or renewed. */
export function withCredential(
  registration: Pick<DeviceRegistrationRecord, "manifestKeys" | "heartbeatIntervalMs">,
  credential: DeviceCredential,
): DeviceRegistrationRecord {
  return {
    deviceId: credential.deviceId,
    orgId: credential.orgId,
    accessToken: credential.accessToken,
    expireTimeMs: credential.expireTime === undefined ? 0 : timestampMs(credential.expireTime),
    refreshToken: credential.refreshToken,
    refreshExpireTimeMs: credential.refreshExpireTime === undefined ? 0 : timestampMs(credential.refreshExpireTime),
    manifestKeys: registration.manifestKeys,
    heartbeatIntervalMs: registration.heartbeatIntervalMs,
  };
}

/**
 * Whether a refused refresh token will never be good again. One that the mesh does not know is no such case: a mesh that
 * was restored from a backup knows it again, and a fleet must not end for good over that.
 */
function isFinal(error: unknown): boolean {
  return isReason(error, "CREDENTIAL_REVOKED", "CREDENTIAL_USED", "CREDENTIAL_EXPIRED");
}

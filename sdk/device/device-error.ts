/** What went wrong on the device itself; refusals of the mesh are `ConnectError`s with a reason. */
export type DeviceErrorKind =
  /** Nothing is stored of a registration, and there is no bootstrap token to register with. */
  | "NOT_REGISTERED"
  /** The store belongs to a device with another identifier. */
  | "IDENTIFIER_MISMATCH"
  /** The mesh has withdrawn the device's credential. The client has stopped for good. */
  | "REVOKED"
  /** The client was closed. */
  | "CLOSED"
  /** The signature of a manifest is not right. */
  | "MANIFEST_SIGNATURE"
  /** A manifest is signed by a key that was not given at registration. */
  | "MANIFEST_KEY_UNKNOWN"
  /** A signed manifest is not for what it was offered for: another organisation, model or version. */
  | "MANIFEST_MISMATCH"
  /** The bytes of an artifact do not have the digest that the manifest signs. */
  | "ARTIFACT_DIGEST"
  /** The artifact has another size than the manifest signs. */
  | "ARTIFACT_SIZE"
  /** The artifact is larger than this device takes. */
  | "ARTIFACT_TOO_LARGE"
  /** The artifact could not be fetched. */
  | "DOWNLOAD"
  /** The disk, or whatever stands for it, did not take or give what it should. */
  | "STORAGE"
  /** Others than the owner may read or write the credential file. */
  | "STORE_INSECURE"
  /** What is stored cannot be read as what it should be. */
  | "STORE_CORRUPT"
  /** Another process holds what may be held once. */
  | "STORE_LOCKED"
  /** The keyring package is not installed, or the platform has no keyring. */
  | "KEYRING_MISSING"
  /** The app could not load the model. */
  | "LOAD"
  /** The mesh will not take a report, now or later. */
  | "TELEMETRY_REFUSED";

/** An error of the device client. `kind` is for programs and stays as it is; the message is for people. */
export class DeviceError extends Error {
  override readonly name = "DeviceError";
  /** What went wrong. */
  readonly kind: DeviceErrorKind;

  constructor(kind: DeviceErrorKind, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.kind = kind;
  }
}

/** Whether an error is one of the device client's, of one of these kinds if any are given. */
export function isDeviceError(error: unknown, ...kinds: readonly DeviceErrorKind[]): error is DeviceError {
  return error instanceof DeviceError && (kinds.length === 0 || kinds.includes(error.kind));
}

import { DeviceError } from "./device-error.ts";
import { type DeviceStore, decodeRecord, encodeRecord } from "./device-store.ts";
import { createMutex } from "./mutex.ts";

/** What is needed of a keyring package; `@napi-rs/keyring` has this shape. */
export interface KeyringModule {
  AsyncEntry: new (service: string, account: string) => KeyringEntry;
}

/** One secret in the platform's keyring. */
export interface KeyringEntry {
  getPassword(): Promise<string | null | undefined>;
  setPassword(password: string): Promise<void>;
  deletePassword(): Promise<unknown>;
}

/** Settings of a keyring store. */
export interface KeyringStoreOptions {
  /** Under which name the keyring lists it. Default `octomesh`. */
  service?: string;
  /** Which secret of that name: one for each device, such as its identifier. */
  account: string;
  /** The keyring package, or what loads it. Default: `import("@napi-rs/keyring")`, which the app must have installed. */
  keyring?: KeyringModule | (() => Promise<KeyringModule>);
  /** Makes processes that share the entry take turns. Default: only calls within this process do. */
  exclusively?: DeviceStore["exclusively"];
}

/**
 * Keeps a device's record in the platform's keyring: Keychain, Secret Service, Credential Manager. Throws DeviceError
 * KEYRING_MISSING at first use where the package is not installed or the platform has no keyring.
 */
export function keyringStore(options: KeyringStoreOptions): DeviceStore {
  let entry: Promise<KeyringEntry> | undefined;
  const opened = () => {
    entry ??= openEntry(options);
    return entry;
  };
  return {
    async load() {
      const text = await (await opened()).getPassword();
      return text === null || text === undefined || text === "" ? undefined : decodeRecord(text);
    },
    async save(record) {
      await (await opened()).setPassword(encodeRecord(record));
    },
    async clear() {
      await (await opened()).deletePassword();
    },
    exclusively: options.exclusively ?? createMutex(),
  };
}

async function openEntry(options: KeyringStoreOptions): Promise<KeyringEntry> {
  const { keyring } = options;
  try {
    const loaded = typeof keyring === "object" ? keyring : await (keyring ?? loadKeyring)();
    return new loaded.AsyncEntry(options.service ?? "octomesh", options.account);
  } catch (cause) {
    throw new DeviceError(
      "KEYRING_MISSING",
      "the platform's keyring cannot be used: install @napi-rs/keyring, pass `keyring`, or use fileStore",
      { cause },
    );
  }
}

async function loadKeyring(): Promise<KeyringModule> {
  // An optional package of the app: by name at run time, so that nothing here depends on it.
  const name = "@napi-rs/keyring";
  return (await import(name)) as KeyringModule;
}

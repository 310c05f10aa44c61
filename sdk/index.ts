import { type Clients, type ClientsOptions, createClientsOn } from "./clients.ts";
import { createDeviceClientOn, type DeviceClient, type DeviceClientOptions } from "./device/device-client.ts";
import { type NodeOptions, nodePlatform } from "./platform/node.ts";

/** Makes typed clients of the mesh's public surface. Nothing is sent before the first call. */
export function createClients(options: ClientsOptions & NodeOptions): Clients {
  return createClientsOn(nodePlatform, options);
}

/** Makes a device client. Nothing is sent or read before `register()`, `start()` or `sync()`. */
export function createDeviceClient(options: DeviceClientOptions & NodeOptions): DeviceClient {
  return createDeviceClientOn(nodePlatform, options);
}

export { directoryArtifacts } from "./device/directory-artifacts.ts";
export { fileStore } from "./device/file-store.ts";
export { fileTelemetry } from "./device/file-telemetry.ts";
export {
  type KeyringEntry,
  type KeyringModule,
  type KeyringStoreOptions,
  keyringStore,
} from "./device/keyring-store.ts";
export { acquireLockFile, type HeldLock, type LockFileOptions, withLockFile } from "./device/lock-file.ts";
export { type NodeOptions, nodeHttp as platformHttp } from "./platform/node.ts";
export * from "./shared.ts";
export { type VerdictKeys, verdictKeys } from "./verdict/verdict-keys.ts";
export {
  type Alarm,
  VerdictTokenError,
  type VerdictTokenProblem,
  type VerifiedVerdict,
  type VerifyVerdictOptions,
  verifyVerdict,
} from "./verdict/verify-verdict.ts";

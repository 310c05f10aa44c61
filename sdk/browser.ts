import { type Clients, type ClientsOptions, createClientsOn } from "./clients.ts";
import { createDeviceClientOn, type DeviceClient, type DeviceClientOptions } from "./device/device-client.ts";
import { type BrowserOptions, browserPlatform } from "./platform/browser.ts";

/** Makes typed clients of the mesh's public surface. Nothing is sent before the first call. */
export function createClients(options: ClientsOptions & BrowserOptions): Clients {
  return createClientsOn(browserPlatform, options);
}

/** Makes a device client. Nothing is sent or read before `register()`, `start()` or `sync()`. */
export function createDeviceClient(options: DeviceClientOptions & BrowserOptions): DeviceClient {
  return createDeviceClientOn(browserPlatform, options);
}

export { indexedDbStore } from "./device/indexed-db-store.ts";
export { type BrowserOptions, browserHttp as platformHttp } from "./platform/browser.ts";
export * from "./shared.ts";

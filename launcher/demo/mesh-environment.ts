import { hasLoopbackRange } from "@octomesh/cli/fleet/loopback-address";

/**
 * The settings of the mesh that the demonstration starts, where they are not the default.
 *
 * Devices without a stream ask every 3 s, so that they too follow a rollback within 5 s. On systems without 127.0.0.0/8
 * all devices share one address, and the registration limit is raised to all of them but one, which still runs into it;
 * elsewhere it stays what it is.
 */
export async function meshEnvironment(devices: number): Promise<Record<string, string>> {
  const shared = { OCTOMESH_DEVICE_REGISTRY_POLL_INTERVAL: "3s" };
  if (await hasLoopbackRange("http://127.0.0.1")) return shared;
  // Two more registrations of the story are refused on purpose, and count too.
  return { ...shared, OCTOMESH_LIMIT_REGISTRATION: String(devices - 1 + 2) };
}

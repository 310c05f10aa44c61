import { hasLoopbackRange } from "@octomesh/cli/fleet/loopback-address";

/**
 * The settings of the mesh that the demonstration starts, where they are not the default.
 *
 * On systems without 127.0.0.0/8 all devices share one address, and the registration limit is raised to all of them but
 * one, which still runs into it; elsewhere every default stays what it is.
 */
export async function meshEnvironment(devices: number): Promise<Record<string, string>> {
  if (await hasLoopbackRange("http://127.0.0.1")) return {};
  // Two more registrations of the story are refused on purpose, and count too.
  return { OCTOMESH_LIMIT_REGISTRATION: String(devices - 1 + 2) };
}

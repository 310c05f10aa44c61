import { hasLoopbackRange } from "@octomesh/cli/fleet/loopback-address";

/**
 * The environment by which a mesh lets a fleet of this size register from one address, for systems that have no
 * 127.0.0.0/8: the limit is raised to all devices but one, which still runs into it. Empty where devices have addresses
 * of their own and the limit stays what it is.
 */
export async function registrationLimitFor(devices: number): Promise<Record<string, string>> {
  if (await hasLoopbackRange("http://127.0.0.1")) return {};
  // Two more registrations of the story are refused on purpose, and count too.
  return { OCTOMESH_LIMIT_REGISTRATION: String(devices - 1 + 2) };
}

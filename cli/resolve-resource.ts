import type { Clients } from "@octomesh/sdk";
import { isIdOf } from "./check-id.ts";
import { checkModelName } from "./check-model-name.ts";
import { CommandError } from "./command-error.ts";
import { exitCode } from "./exit-code.ts";

/**
 * The id of a device that a person named by its id or by its own identifier. Looking an identifier up needs the scope
 * `devices:read`; an id needs nothing. Throws a CommandError with exit code 4 where there is no such device.
 */
export async function resolveDevice(clients: Pick<Clients, "devices">, named: string): Promise<string> {
  if (isIdOf("dev", named)) return named;
  const answer = await clients.devices.listDevices({ deviceIdentifier: named, pageSize: 2 });
  const device = answer.devices[0];
  if (device === undefined) {
    throw new CommandError(`there is no device with the identifier "${named.slice(0, 128)}"`, {
      code: exitCode.notFound,
      hint: "See octomil devices list.",
    });
  }
  return device.id;
}

/** The id of a group that a person named by its id or its name, as `resolveDevice`. */
export async function resolveGroup(clients: Pick<Clients, "deviceGroups">, named: string): Promise<string> {
  if (isIdOf("grp", named)) return named;
  let pageToken = "";
  do {
    const answer = await clients.deviceGroups.listDeviceGroups({ pageSize: 1000, pageToken });
    const group = answer.deviceGroups.find((candidate) => candidate.displayName === named);
    if (group !== undefined) return group.id;
    pageToken = answer.nextPageToken;
  } while (pageToken !== "");
  throw new CommandError(`there is no group "${named.slice(0, 100)}"`, {
    code: exitCode.notFound,
    hint: "See octomil groups list.",
  });
}

/** The id of a model that a person named by its id or its name. Needs the scope `models:read` for a name. */
export async function resolveModel(clients: Pick<Clients, "models">, named: string): Promise<string> {
  return isIdOf("mdl", named) ? named : (await clients.models.getModel({ id: checkModelName(named) })).id;
}

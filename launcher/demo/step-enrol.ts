import { createFleet, type FleetDevice } from "@octomesh/cli/fleet/fleet";
import { BootstrapToken_Kind } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_pb";
import { createDeviceClient, type HttpClient, memoryStore, reasonOf } from "@octomesh/sdk";
import { waitUntil } from "./wait-until.ts";
import { provided, type World } from "./world.ts";

/** Index of the device whose first download is cut half-way. */
export const cutDevice = 3;
/** Devices that ask for their desired state instead of following a stream. */
export const pollingDevices = new Set([5, 6, 7, 8, 9]);
/** How many registrations one address gets in a minute. */
const registrationsPerMinute = 10;

/** Step 3: devices with identities of their own, half by single-use tokens, half by one enrolment token. */
export async function enrol(world: World): Promise<void> {
  const { narrator, deviceCount } = world;
  const backend = provided(world.backend, "the fleet's key");
  const half = Math.ceil(deviceCount / 2);
  narrator.say(`An enrolment token, as if embedded in the app, for ${deviceCount - half} devices:`);
  const created = await world.octomil(
    [
      ...["bootstrap-tokens", "create", "--enrolment", "--max-uses", String(deviceCount - half)],
      ...["--name", "app 3.2", "--lifetime", "1d"],
    ],
    { env: { OCTOMIL_API_KEY: world.fleetKey } },
  );
  const enrolmentToken = /\bedg_bootstrap_[0-9A-Za-z]{28}\b/.exec(created.stdout)?.[0] ?? "";
  narrator.say(
    `The other ${half} get a single-use token each, which the backend mints with its key. Each device registers`,
  );
  narrator.say("by POST /api/v1/devices/register, from an address and with an identity of its own.");

  const singleUse = new Map<number, string>();
  const lastIndex = deviceCount - 1;
  const crowd = Math.max(0, lastIndex - registrationsPerMinute);
  const fleet = await createFleet({
    url: world.url,
    count: deviceCount,
    name: "device",
    addressBlock: 1,
    async token({ index, identifier, enrolment }) {
      if (enrolment === "enrolment") return enrolmentToken;
      const { token } = await backend.bootstrapTokens.createBootstrapToken({
        kind: BootstrapToken_Kind.SINGLE_USE,
        // The first one is bound to no identifier, so that what refuses its replay is its use alone.
        allowedIdentifiers: index === 0 ? [] : [identifier],
      });
      singleUse.set(index, token);
      return token;
    },
    // The last device shares its address with ten that register before it.
    addressOf: (index, own) => (index >= crowd && crowd > 0 ? `127.1.250.1` : own),
    followOf: (index) => (pollingDevices.has(index) ? "poll" : "stream"),
    httpOf: (index, plain) => (index === cutDevice ? cutOnce(plain) : plain),
    telemetryIntervalMs: 10_000,
    signal: world.signal,
  });
  world.fleet = fleet;
  if (!fleet.distinctAddresses) {
    narrator.say("This system has one loopback address only: the demonstration raised the registration limit by");
    narrator.say("configuration (OCTOMESH_LIMIT_REGISTRATION); the last device runs into what is left of it.");
  }

  const others = fleet.devices.slice(0, lastIndex);
  const bar = narrator.bar({ label: "registering", total: others.length });
  const counting = setInterval(
    () => bar.set(others.filter((device) => device.registeredAtMs !== undefined).length),
    100,
  );
  const begin = performance.now();
  try {
    await fleet.start(others);
  } finally {
    clearInterval(counting);
    bar.end();
  }
  const seconds = (performance.now() - begin) / 1000;
  const ids = new Set(others.map((device) => device.client.deviceId));
  world.check(
    ids.size === others.length && !ids.has(undefined),
    `${others.length} devices registered in ${seconds.toFixed(1)} s, each with an id of its own`,
  );
  const records = await Promise.all(others.map((device) => device.store.load()));
  const tokens = new Set(records.map((record) => record?.registration?.accessToken));
  world.check(tokens.size === others.length && !tokens.has(undefined), "each holds a credential of its own");
  const heard = await waitUntil(() => others.every((device) => device.client.stats().heartbeats > 0), {
    timeoutMs: 30_000,
    signal: world.signal,
  });
  world.check(heard, "each was heard: a heartbeat was stored and answered");

  await refuseOthers(world, provided(others[0], "the first device"), singleUse.get(0) ?? "", enrolmentToken);
  const last = fleet.devices[lastIndex];
  if (last !== undefined) await runIntoLimit(world, last);

  const listed = await world.octomil(["devices", "list", "--limit", "all", "--quiet"], { quiet: true });
  const count = listed.stdout.trim().split("\n").length;
  world.check(count >= others.length, `octomil devices list shows ${count} devices`);
}

/** A single-use token works once, and nobody takes over an identifier. */
async function refuseOthers(world: World, device: FleetDevice, used: string, shared: string): Promise<void> {
  const replay = await registrationRefusal(world, "somebody-else", used);
  world.check(replay === "CREDENTIAL_USED", `a single-use token that was used is refused: ${replay}`);
  const takeover = await registrationRefusal(world, device.identifier, shared);
  world.check(
    takeover === "REENROLMENT_NOT_GRANTED",
    `nobody takes over ${device.identifier} with a token of the app: ${takeover}`,
  );
}

/** Why a registration was refused; `nothing` where it was not. */
async function registrationRefusal(world: World, deviceIdentifier: string, bootstrapToken: string): Promise<string> {
  const intruder = createDeviceClient({ baseUrl: world.url, deviceIdentifier, bootstrapToken, store: memoryStore() });
  try {
    await intruder.register();
    return "nothing";
  } catch (error) {
    return reasonOf(error) ?? String(error);
  } finally {
    await intruder.close();
  }
}

/** The eleventh registration from one address within a minute is told to wait, and does. */
async function runIntoLimit(world: World, device: FleetDevice): Promise<void> {
  const fleet = provided(world.fleet, "the fleet");
  const registered = fleet.start([device]);
  // It is waited for, and its failure told, where the story needs the device.
  registered.catch(() => {});
  world.limited = { index: device.index, registered };
  const told = await waitUntil(() => device.throttles.length > 0, { timeoutMs: 15_000, signal: world.signal });
  const seconds = Math.ceil((device.throttles[0]?.retryAfterMs ?? 0) / 1000);
  world.check(
    told && device.client.deviceId === undefined,
    `the last device is the eleventh from its address within a minute: 429, Retry-After ${seconds} s; it waits`,
  );
}

/** Cuts the first artifact's first answer when half of its bytes have come. */
function cutOnce(plain: HttpClient): HttpClient {
  let isCut = false;
  return async (request) => {
    const response = await plain(request);
    const length = Number(response.headers.get("content-length"));
    if (isCut || response.status !== 200 || !(length > 0)) return response;
    isCut = true;
    async function* half() {
      let left = Math.floor(length / 2);
      for await (const piece of response.body) {
        if (piece.length >= left) {
          yield piece.subarray(0, left);
          throw new Error("the connection was cut half-way");
        }
        left -= piece.length;
        yield piece;
      }
    }
    return { ...response, body: half() };
  };
}

import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { FleetDevice } from "@octomesh/cli/fleet/fleet";
import { loopbackUrl } from "@octomesh/cli/fleet/loopback-address";
import { bearer, createClients, isReason } from "@octomesh/sdk";
import { waitUntil } from "./wait-until.ts";
import { provided, type World } from "./world.ts";

const revokedDevice = 10;

/** One thing that a device may do, at one service of the mesh. */
interface Probe {
  service: string;
  /** Does it. Answers whether it was allowed; throws where the answer is neither yes nor a refusal of the credential. */
  isAllowed(): Promise<boolean>;
}

/** Step 5: a device is revoked, and refused everywhere; its neighbours are untouched. */
export async function revoke(world: World): Promise<void> {
  const { narrator } = world;
  const fleet = provided(world.fleet, "the fleet");
  const device = provided(fleet.devices[revokedDevice], "the device to revoke");
  const id = provided(device.client.deviceId, "the device to revoke");
  const neighbours = fleet.devices.filter(
    ({ index }) => Math.abs(index - revokedDevice) <= 3 && index !== revokedDevice,
  );
  const { probes, close } = await openProbes(world, device, id);
  try {
    const before = await Promise.all(probes.map((probe) => probe.isAllowed()));
    world.check(
      before.every(Boolean),
      `before, its credential is good at ${probes.map(({ service }) => service).join(", ")}`,
    );

    await world.octomil(["devices", "revoke", id, "--reason", "stolen"], { quiet: true });
    const begin = performance.now();
    const refusedAfterMs = new Map<string, number>();
    await waitUntil(
      async () => {
        const open = probes.filter(({ service }) => !refusedAfterMs.has(service));
        await Promise.all(
          open.map(async (probe) => {
            if (!(await probe.isAllowed())) refusedAfterMs.set(probe.service, performance.now() - begin);
          }),
        );
        return refusedAfterMs.size === probes.length;
      },
      { timeoutMs: 3000, everyMs: 100, signal: world.signal },
    );
    const slowest = Math.max(0, ...refusedAfterMs.values());
    world.check(
      refusedAfterMs.size === probes.length && slowest <= 1000,
      `after, it is refused at all of them, the last answer ${slowest.toFixed(0)} ms after the command`,
    );
    const refreshed = await refresh(world, device);
    world.check(!refreshed, "its refresh token brings no new credential");
    const knows = await waitUntil(() => device.revoked, { timeoutMs: 10_000, signal: world.signal });
    world.check(knows, "the device itself was told, and has stopped");
  } finally {
    close();
  }

  narrator.say("Its neighbours:");
  const begin = performance.now();
  await Promise.all(neighbours.map(({ client }) => client.heartbeat()));
  const quiet = neighbours.every(({ failures }) => failures.every(({ atMs }) => atMs < begin - 60_000));
  const running = fleet.devices.filter(({ client }) => client.state === "running").length;
  world.check(
    quiet && running === fleet.devices.length - 1,
    `all ${running} other devices go on: heartbeats answered, nothing refused`,
  );
}

async function openProbes(world: World, device: FleetDevice, id: string) {
  const record = (await device.store.load())?.registration;
  const accessToken = provided(record?.accessToken, "the device's credential");
  const localAddress = device.address === "" ? undefined : device.address;
  const baseUrl = localAddress === undefined ? world.url : loopbackUrl(world.url);
  const clients = createClients({ baseUrl, localAddress, credential: bearer(accessToken), retry: false });
  const desired = await clients.devices.getDesiredState({ id });
  const model = provided(desired.models[0], "the device's desired model");
  let sequence = 0n;
  const allowed = async (call: Promise<unknown>): Promise<boolean> => {
    try {
      await call;
      return true;
    } catch (error) {
      if (isReason(error, "CREDENTIAL_REVOKED", "CREDENTIAL_UNKNOWN", "DEVICE_NOT_ACTIVE")) return false;
      throw error;
    }
  };
  const probes: Probe[] = [
    { service: "identity", isAllowed: () => allowed(clients.sessions.getCaller({})) },
    { service: "device-registry", isAllowed: () => allowed(clients.devices.getDevice({ id })) },
    {
      service: "telemetry",
      isAllowed: () =>
        allowed(
          clients.telemetry.reportTelemetry({
            id,
            bootId: "probe",
            sequence: sequence++,
            reports: [
              { kind: { case: "health", value: { measureTime: timestampFromMs(Date.now()), batteryPercent: 50 } } },
            ],
          }),
        ),
    },
    {
      service: "rollout",
      async isAllowed() {
        const response = await fetch(`${baseUrl}${model.downloadPath}`, {
          headers: {
            authorization: `Bearer ${accessToken}`,
            "octomesh-download-grant": model.downloadGrant,
            range: "bytes=0-1023",
          },
        });
        await response.arrayBuffer();
        if (response.status === 206) return true;
        if (response.status === 401 || response.status === 403) return false;
        throw new Error(`the download answered ${response.status}`);
      },
    },
  ];
  return { probes, close: () => clients.close() };
}

/** Whether a device's refresh token still brings a credential. */
async function refresh(world: World, device: FleetDevice): Promise<boolean> {
  const record = await device.store.load();
  const refreshToken = provided(record?.registration?.refreshToken, "the device's refresh token");
  const clients = createClients({ baseUrl: world.url, retry: false });
  try {
    await clients.deviceCredentials.refreshDeviceCredential({ refreshToken, clientKey: record?.clientKey ?? "" });
    return true;
  } catch (error) {
    if (isReason(error, "CREDENTIAL_REVOKED", "CREDENTIAL_UNKNOWN", "CREDENTIAL_USED")) return false;
    throw error;
  } finally {
    clients.close();
  }
}

import { durationMs } from "@bufbuild/protobuf/wkt";
import { percentile } from "@octomesh/cli/fleet/call-statistics";
import type { FleetDevice } from "@octomesh/cli/fleet/fleet";
import { ObservedState_State } from "@octomesh/proto/octomesh/device/v1/observed_state_pb";
import { type Rollout, Rollout_State } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { expectedHolders } from "./expected-holders.ts";
import { cutDevice, pollingDevices } from "./step-enrol.ts";
import { waitUntil } from "./wait-until.ts";
import { provided, type World } from "./world.ts";

/** How long a rollback may take to reach a device that is connected, in milliseconds. */
const rollbackLimitMs = 5000;

/** Step 4: versions reach devices, and leave them again. */
export async function rollOut(world: World): Promise<void> {
  const { narrator } = world;
  const fleet = provided(world.fleet, "the fleet");

  narrator.say("1.0.0 to everyone.");
  const first = await createRollout(world, "1.0.0", "100");
  await reach(world, first, 100_000, "1.0.0 to 100 %", registered(world));
  const cut = fleet.devices[cutDevice];
  const size = world.published.find(({ version }) => version === "1.0.0")?.sizeBytes ?? 0;
  world.check(
    cut !== undefined && cut.client.stats().resumedDownloads === 1 && cut.client.stats().downloadedBytes === size,
    `the download of ${cut?.identifier} was cut half-way and resumed by range: no byte came twice`,
  );
  await honourLimit(world);
  await reach(world, first, 100_000, "1.0.0 to the device that waited", registered(world));
  await step(world, "complete", first);

  narrator.say("1.1.0 by stages. The published bucket function says which devices come first; it is recomputed here.");
  const second = await createRollout(world, "1.1.0", "10");
  await reach(world, second, 10_000, "1.1.0 to 10 %", registered(world));
  await setPercentage(world, second, "50");
  await reach(world, second, 50_000, "1.1.0 to 50 %", registered(world));
  await step(world, "pause", second);
  const refused = await world.octomil(["rollouts", "set-percentage", second, "100"], {
    env: ci(world),
    expect: 1,
    quiet: true,
  });
  world.check(refused.stderr.includes("ILLEGAL_TRANSITION"), "a paused rollout does not grow");
  const backwards = await goBackwards(world, second);
  world.check(backwards, "a share does not go back without a rollback");
  await setPercentage(world, second, "100");
  await reach(world, second, 100_000, "1.1.0 to 100 %", registered(world));
  await step(world, "complete", second);
  world.check(
    registered(world).every((device) => keptOnce(device, "1.1.0")),
    "no device lost 1.1.0 while the share grew, paused and resumed",
  );

  narrator.say("1.2.0 to half of them, and back.");
  const third = await createRollout(world, "1.2.0", "50");
  const exposed = await reach(world, third, 50_000, "1.2.0 to 50 %", registered(world));
  await rollBack(world, third, exposed);
  await world.octomil(["rollouts", "history", third]);
}

async function createRollout(world: World, version: string, percentage: string): Promise<string> {
  const args = ["rollouts", "create", world.model, version, "--percentage", percentage, "--start", "--quiet"];
  return (await world.octomil(args, { env: ci(world) })).stdout.trim();
}

async function setPercentage(world: World, id: string, percentage: string): Promise<void> {
  await world.octomil(["rollouts", "set-percentage", id, percentage], { env: ci(world), quiet: true });
}

async function step(world: World, word: string, id: string): Promise<void> {
  await world.octomil(["rollouts", word, id], { env: ci(world), quiet: true });
}

async function goBackwards(world: World, id: string): Promise<boolean> {
  await step(world, "resume", id);
  const refused = await world.octomil(["rollouts", "set-percentage", id, "49.999"], {
    env: ci(world),
    expect: 1,
    quiet: true,
  });
  return refused.stderr.includes("PERCENTAGE_NOT_MONOTONE");
}

/** Waits until exactly the devices that must hold a rollout's version do, on the devices and by their own reports. */
async function reach(
  world: World,
  id: string,
  thousandths: number,
  text: string,
  devices: readonly FleetDevice[],
): Promise<ReadonlySet<string>> {
  const beginMs = performance.now() - (world.commands.at(-1)?.durationMs ?? 0);
  const rollout = await getRollout(world, id);
  const expected = expectedHolders(rollout.salt, thousandths, idsOf(devices));
  const holds = (device: FleetDevice) => modelOf(world, device)?.versionId === rollout.versionId;
  const bar = world.narrator.bar({ label: text, total: expected.size });
  const arrived = await waitUntil(
    () => {
      const holders = devices.filter(holds);
      bar.set(holders.length);
      return holders.length >= expected.size && holders.every((device) => expected.has(device.client.deviceId ?? ""));
    },
    { timeoutMs: 120_000, signal: world.signal },
  ).finally(() => bar.end());
  const counted = await waitUntil(async () => (await countObserved(world, rollout.versionId)) === expected.size, {
    timeoutMs: 20_000,
    everyMs: 250,
    signal: world.signal,
  });
  // Looked at once more after the reports came, when whoever should not hold it had time to get it.
  const holders = devices.filter(holds);
  const exact =
    holders.length === expected.size && holders.every((device) => expected.has(device.client.deviceId ?? ""));
  const latenciesMs = holders
    .flatMap((device) => {
      const activation = device.activations.at(-1);
      return activation !== undefined && activation.atMs >= beginMs ? [activation.atMs - beginMs] : [];
    })
    .sort((a, b) => a - b);
  if (latenciesMs.length > 0) world.rolloutSteps.push({ text, devices: holders.length, latenciesMs });
  const slowest =
    latenciesMs.length === 0 ? "" : `, the slowest after ${(percentile(latenciesMs, 1) / 1000).toFixed(1)} s`;
  world.check(
    arrived && exact,
    `${text}: ${holders.length} of ${devices.length} devices hold it, exactly those whose bucket is below ${thousandths}${slowest}`,
  );
  world.check(counted, `the mesh counts ${expected.size} devices on it by their own reports`);
  return expected;
}

/** The device that was told to wait registers when its time has come, and no sooner. */
async function honourLimit(world: World): Promise<void> {
  const { index, registered: ready } = provided(world.limited, "the device at the limit");
  const device = provided(world.fleet?.devices[index], "the device at the limit");
  const [throttle] = device.throttles;
  const waitMs = throttle?.retryAfterMs ?? 0;
  const since = () => performance.now() - (throttle?.atMs ?? 0);
  const bar = world.narrator.bar({
    label: "the last device waits as Retry-After asks",
    total: Math.max(1, Math.ceil(waitMs / 1000)),
    format: (seconds) => `${seconds} s`,
  });
  const counting = setInterval(() => bar.set(Math.floor(since() / 1000)), 250);
  try {
    await ready;
  } finally {
    clearInterval(counting);
    bar.end();
  }
  const waitedMs = (device.registeredAtMs ?? 0) - (throttle?.atMs ?? 0);
  world.check(
    throttle !== undefined && device.client.deviceId !== undefined && waitedMs >= waitMs,
    `it waited ${(waitedMs / 1000).toFixed(1)} s, as it was asked to, and registered`,
  );
}

/** Every device returns to the version before: by its stream within five seconds of the command, or by its poll. */
async function rollBack(world: World, id: string, exposed: ReadonlySet<string>): Promise<void> {
  const devices = registered(world);
  const concerned = devices.filter((device) => exposed.has(device.client.deviceId ?? ""));
  const prior = (device: FleetDevice) => modelOf(world, device)?.version === "1.1.0";
  const pollLimitMs = Math.max(rollbackLimitMs, (await pollIntervalMs(devices)) * 1.1 + 1000);
  const begin = performance.now();
  const command = world.octomil(["rollouts", "rollback", id, "--reason", "crashes in the field"], {
    env: ci(world),
    quiet: true,
  });
  const bar = world.narrator.bar({ label: "rolling back", total: exposed.size });
  const back = waitUntil(
    () => {
      bar.set(concerned.filter(prior).length);
      return devices.every(prior);
    },
    { timeoutMs: 60_000, signal: world.signal },
  ).finally(() => bar.end());
  const [arrived] = await Promise.all([back, command]);
  const tookMs = (device: FleetDevice) => (device.activations.at(-1)?.atMs ?? Number.POSITIVE_INFINITY) - begin;
  const latenciesMs = concerned.map(tookMs).sort((a, b) => a - b);
  const inTime = concerned.every(
    (device) => tookMs(device) <= (pollingDevices.has(device.index) ? pollLimitMs : rollbackLimitMs),
  );
  world.check(
    arrived && inTime,
    `rollback: ${exposed.size} devices are back on 1.1.0, the last ${(percentile(latenciesMs, 1) / 1000).toFixed(2)} s after the command began`,
  );
  const toldMs = concerned
    .map((device) => (device.activations.at(-1)?.toldAtMs ?? begin) - begin)
    .sort((a, b) => a - b);
  world.narrator.say(
    `Half of them were told after ${(percentile(toldMs, 0.5) / 1000).toFixed(2)} s, all after ${(percentile(toldMs, 1) / 1000).toFixed(2)} s.`,
  );
  world.rolloutSteps.push({ text: "1.2.0 rolled back to 1.1.0", devices: exposed.size, latenciesMs });
  const kept = concerned.every((device) => device.activations.at(-1)?.downloaded === false);
  world.check(kept, "nothing was downloaded for it: every device had kept the version before");
  const ended = await waitUntil(async () => (await getRollout(world, id)).state === Rollout_State.ROLLED_BACK, {
    timeoutMs: 15_000,
    everyMs: 500,
    signal: world.signal,
  });
  world.check(ended, "the rollout ends as rolled back");
}

/** How often the mesh lets devices without a stream ask, in milliseconds. */
async function pollIntervalMs(devices: readonly FleetDevice[]): Promise<number> {
  const device = provided(devices[0], "the fleet");
  const state = await device.client.clients.devices.getDesiredState({ id: device.client.deviceId ?? "" });
  return state.pollInterval === undefined ? 0 : durationMs(state.pollInterval);
}

async function getRollout(world: World, id: string): Promise<Rollout> {
  return provided(world.backend, "the fleet's key").rollouts.getRollout({ id });
}

async function countObserved(world: World, versionId: string): Promise<number> {
  const backend = provided(world.backend, "the fleet's key");
  const { counts } = await backend.devices.countObservedVersions({ modelId: world.modelId });
  const active = counts.filter((count) => count.versionId === versionId && count.state === ObservedState_State.ACTIVE);
  return active.reduce((sum, count) => sum + Number(count.devices), 0);
}

/** Whether a device, once it had a version, had no other after it until now. */
function keptOnce(device: FleetDevice, version: string): boolean {
  const first = device.activations.findIndex((activation) => activation.version === version);
  return first >= 0 && device.activations.slice(first).every((activation) => activation.version === version);
}

function modelOf(world: World, device: FleetDevice) {
  return device.client.models().find((model) => model.modelId === world.modelId);
}

function registered(world: World): FleetDevice[] {
  return (world.fleet?.devices ?? []).filter((device) => device.client.deviceId !== undefined);
}

function idsOf(devices: readonly FleetDevice[]): string[] {
  return devices.flatMap((device) => (device.client.deviceId === undefined ? [] : [device.client.deviceId]));
}

function ci(world: World): Record<string, string> {
  return { OCTOMIL_API_KEY: world.ciKey };
}

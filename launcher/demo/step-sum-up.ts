import { LatencyReport_Operation } from "@octomesh/proto/octomesh/telemetry/v1/latency_report_pb";
import { provided, type World } from "./world.ts";

/** Errors that the story provokes on purpose. */
const provoked = new Set(["RATE_LIMITED", "CREDENTIAL_REVOKED"]);

/** Step 7: what the fleet reported, and whether anything failed that was not meant to. */
export async function sumUp(world: World): Promise<void> {
  const fleet = provided(world.fleet, "the fleet");
  const running = fleet.devices.filter(({ client }) => client.state === "running");
  await Promise.all(running.map(({ client }) => client.flush()));
  const sent = running.reduce((sum, { client }) => sum + client.stats().sentReports, 0);
  const dropped = running.reduce((sum, { client }) => sum + client.stats().droppedReports, 0);
  world.check(sent > 0 && dropped === 0, `${sent} telemetry reports were taken, none lost`);

  await world.octomil(["telemetry", "latency", "--model", world.model, "--width", "1d", "--since", "1h"]);
  const backend = provided(world.backend, "the fleet's key");
  const { aggregates } = await backend.telemetry.listLatencyAggregates({
    pageSize: 1000,
    filter: { modelId: world.modelId },
  });
  const measured = aggregates
    .filter(({ operation }) => operation === LatencyReport_Operation.INFERENCE)
    .reduce((sum, { count }) => sum + Number(count), 0);
  world.check(measured > 0 && measured % 20 === 0, `${measured} inference times are summed up by version and time`);

  const calls = fleet.calls();
  const unexpected = Object.entries(calls.errorsByReason).filter(([reason]) => !provoked.has(reason));
  world.check(
    unexpected.length === 0,
    unexpected.length === 0
      ? `${calls.calls} calls of devices, ${calls.errors} refused, each of them on purpose`
      : `calls failed that were not meant to: ${unexpected.map(([reason, count]) => `${reason} ${count}`).join(", ")}`,
  );
}

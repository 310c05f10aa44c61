import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { BootstrapToken_Kind } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_pb";
import { Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { apiKey, type Clients, createClients } from "@octomesh/sdk";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { CommandError } from "../command-error.ts";
import type { Connection } from "../connection.ts";
import { createFleet, type Fleet } from "../fleet/fleet.ts";
import { formatBytes } from "../format-bytes.ts";
import { formatDuration, parseDuration } from "../parse-duration.ts";

/** `octomil simulate`: a fleet for anyone. */
export const simulateCommand: CommandSpec = {
  name: "simulate",
  summary: "Run a fleet of simulated devices in this process, until Ctrl-C",
  details:
    "Every device is a device client of the SDK with an identity of its own: half register by single-use tokens that a " +
    "backend key mints, half by one enrolment token, as if embedded in an app. They follow their desired state, download " +
    "and verify artifacts, and report synthetic telemetry. On Linux, against a mesh on the same machine, each device has " +
    "a source address of its own (127.0.0.0/8); elsewhere they share one and the registration limit of 10 in a minute " +
    "for each address sets the pace. With --duration the exit code is 1 where a device refuses a model at the end.",
  options: [
    ["--devices <number>", "how many devices, 1 to 5000; 20 if left out"],
    ["--duration <duration>", "stop after this time"],
    ["--poll", "ask for the desired state instead of following a stream"],
    ["--revoke", "revoke the devices when the simulation ends"],
  ],
  examples: ["simulate --devices 50", "simulate --devices 200 --duration 5m --revoke --json"],
  run: simulate,
};

async function simulate(context: CommandContext, input: CommandInput): Promise<void> {
  const count = input.integer("devices", { min: 1, max: 5000, fallback: 20 });
  const duration = input.text("duration");
  const durationMs = duration === undefined ? Number.POSITIVE_INFINITY : parseDuration(duration) * 1000;
  const connection = await context.connect();
  const backend = await openBackend(connection, count);
  const { signal } = context.terminal;
  const begin = performance.now();
  let fleet: Fleet | undefined;
  try {
    const enrolmentToken = await backend.enrolmentToken();
    fleet = await createFleet({
      url: connection.url,
      count,
      name: `sim-${randomBytes(3).toString("hex")}`,
      token: ({ identifier, enrolment }) =>
        enrolment === "enrolment" ? Promise.resolve(enrolmentToken) : backend.singleUseToken(identifier),
      followOf: () => (input.flag("poll") ? "poll" : "stream"),
      signal,
    });
    if (!fleet.distinctAddresses && count > 10) {
      context.output.note("The devices share one source address: 10 register in a minute, the others wait their turn.");
    }
    let failure: unknown;
    const starting = fleet.start().catch((error: unknown) => {
      failure = error;
    });
    const live = liveTable(context);
    while (!signal.aborted && failure === undefined && performance.now() - begin < durationMs) {
      live.draw(fleet, performance.now() - begin);
      await delay(Math.min(1000, Math.max(1, durationMs - (performance.now() - begin))), undefined, { signal }).catch(
        () => {},
      );
    }
    live.draw(fleet, performance.now() - begin, true);
    if (failure !== undefined && !signal.aborted) throw failure;
    if (performance.now() - begin < durationMs && !signal.aborted) await starting;
    if (input.flag("revoke")) {
      // What was measured is sent while the mesh still takes it; without --revoke the end of the fleet does so.
      await fleet.flush();
      await revokeAll(context, connection.clients, fleet);
    }
    finish(context, fleet, performance.now() - begin);
    if (fleet.refused.count() > 0 && !signal.aborted) {
      const kinds = Object.entries(fleet.refused.byKind()).map(([kind, count]) => `${count} ${kind}`);
      throw new CommandError(`${fleet.refused.devices()} of ${count} devices refused a model: ${kinds.join(", ")}`, {
        hint: "What they ran before goes on. Compare the artifact with what was pushed: octomil models versions <model>.",
      });
    }
  } finally {
    await fleet?.close();
    await backend.close();
  }
}

/** Mints tokens as an app's backend does: with an API key, one made for the purpose where a member is signed in. */
async function openBackend(connection: Connection, count: number) {
  const made =
    connection.kind === "session"
      ? await connection.clients.apiKeys.createApiKey({ name: "octomil simulate", scopes: [Scope.DEVICES_ENROLL] })
      : undefined;
  const clients =
    made === undefined
      ? connection.clients
      : createClients({ baseUrl: connection.url, credential: apiKey(made.apiKey), timeoutMs: 120_000 });
  let enrolmentTokenId = "";
  return {
    async enrolmentToken() {
      const token = await clients.bootstrapTokens.createBootstrapToken({
        kind: BootstrapToken_Kind.ENROLMENT,
        name: "octomil simulate",
        maxUses: count,
        lifetime: durationFromMs(24 * 3600 * 1000),
      });
      enrolmentTokenId = token.id;
      return token.token;
    },
    async singleUseToken(identifier: string) {
      const token = await clients.bootstrapTokens.createBootstrapToken({
        kind: BootstrapToken_Kind.SINGLE_USE,
        allowedIdentifiers: [identifier],
      });
      return token.token;
    },
    /** Leaves no token or key behind that still lets anybody in. */
    async close() {
      if (enrolmentTokenId !== "") await clients.bootstrapTokens.revokeBootstrapToken({ id: enrolmentTokenId });
      if (made === undefined) return;
      clients.close();
      await connection.clients.apiKeys.revokeApiKey({ id: made.id });
    },
  };
}

async function revokeAll(context: CommandContext, clients: Clients, fleet: Fleet): Promise<void> {
  const ids = fleet.devices.flatMap((device) => (device.client.deviceId === undefined ? [] : [device.client.deviceId]));
  context.output.note(`Revoking ${ids.length} devices …`);
  for (const id of ids) await clients.devices.revokeDevice({ id, reason: "end of a simulation" });
}

function liveTable(context: CommandContext) {
  const { terminal, output } = context;
  const shown = !output.json && !output.quiet;
  let height = 0;
  let lastLineMs = Number.NEGATIVE_INFINITY;
  return {
    draw(fleet: Fleet, elapsedMs: number, last = false) {
      if (!shown) return;
      const facts = factsOf(fleet, elapsedMs);
      if (terminal.outIsTty) {
        const text = output.table(facts, [
          { title: "SIMULATION", value: ([label]) => label },
          { title: "", value: ([, value]) => value },
        ]);
        const footer = last ? "" : output.paint.dim("\nCtrl-C ends it.");
        const block = `${text}${footer}\n`;
        terminal.out(`${height > 0 ? `\r\u001b[${height}A\u001b[J` : ""}${block}`);
        height = block.split("\n").length - 1;
      } else if (last || elapsedMs - lastLineMs >= 10_000) {
        lastLineMs = elapsedMs;
        terminal.out(`${facts.map(([label, value]) => `${label} ${value}`).join(" · ")}\n`);
      }
    },
  };
}

function factsOf(fleet: Fleet, elapsedMs: number): [string, string][] {
  const states = new Map<string, number>();
  for (const { client } of fleet.devices) states.set(client.state, (states.get(client.state) ?? 0) + 1);
  const calls = fleet.calls();
  const throttled = fleet.devices.reduce((sum, device) => sum + device.throttles.length, 0);
  const heartbeat = calls.byMethod.Heartbeat;
  return [
    ["time", formatDuration(elapsedMs / 1000)],
    ["devices", countsText(states)],
    ["versions", countsText(fleet.versions())],
    ["refused", refusedText(fleet)],
    ["calls", `${calls.calls}, ${calls.errors} failed, ${throttled} waits asked for`],
    [
      "heartbeat",
      heartbeat === undefined ? "-" : `p50 ${heartbeat.p50Ms.toFixed(0)} ms, p99 ${heartbeat.p99Ms.toFixed(0)} ms`,
    ],
    ["downloads", formatBytes(fleet.downloadedBytes())],
  ];
}

function refusedText(fleet: Fleet): string {
  const kinds = Object.entries(fleet.refused.byKind()).map(([kind, count]) => `${count} ${kind}`);
  return kinds.length === 0 ? "0 models" : `${fleet.refused.count()} models: ${kinds.join(", ")}`;
}

function countsText(counts: ReadonlyMap<string, number>): string {
  return [...counts].map(([name, count]) => `${count} ${name === "-" ? "without" : name}`).join(", ") || "-";
}

function finish(context: CommandContext, fleet: Fleet, elapsedMs: number): void {
  const calls = fleet.calls();
  const registered = fleet.devices.filter((device) => device.client.deviceId !== undefined).length;
  context.output.result(
    {
      devices: fleet.devices.length,
      registered,
      seconds: Math.round(elapsedMs / 100) / 10,
      versions: Object.fromEntries(fleet.versions()),
      calls: calls.calls,
      errors: calls.errors,
      errors_by_reason: calls.errorsByReason,
      refused: fleet.refused.count(),
      refused_by_kind: fleet.refused.byKind(),
      downloaded_bytes: fleet.downloadedBytes(),
      methods: Object.fromEntries(
        Object.entries(calls.byMethod).map(([method, figures]) => [
          method,
          {
            calls: figures.calls,
            p50_ms: figures.p50Ms,
            p95_ms: figures.p95Ms,
            p99_ms: figures.p99Ms,
            max_ms: figures.maxMs,
          },
        ]),
      ),
    },
    `${registered} of ${fleet.devices.length} devices took part; ${calls.calls} calls, ${calls.errors} failed; ${fleet.refused.count()} models refused.`,
    String(registered),
  );
}

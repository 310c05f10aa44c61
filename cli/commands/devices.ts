import { DesiredStateSchema } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import {
  type Device,
  Device_PresenceSchema,
  Device_StateSchema,
  DeviceSchema,
  PlatformSchema,
} from "@octomesh/proto/octomesh/device/v1/device_pb";
import {
  ObservedState_FailureSchema,
  ObservedState_StateSchema,
  ObservedStateSchema,
} from "@octomesh/proto/octomesh/device/v1/observed_state_pb";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { usageError } from "../command-error.ts";
import { formatAge, formatTime } from "../format-time.ts";
import { toDocument } from "../output.ts";
import { choiceWord, parseChoice } from "../parse-choice.ts";
import { resolveDevice, resolveGroup } from "../resolve-resource.ts";
import { readNames } from "../resource-names.ts";

const deviceArgument = ["<device>", "id of the device, dev_…, or its own identifier"] as const;

/** `octomil devices …`: the fleet. */
export const deviceCommands: readonly CommandSpec[] = [
  {
    name: "list",
    summary: "List devices, newest first",
    options: [
      ["--state <state>", "awaiting-approval, active or revoked"],
      ["--platform <platform>", "ios, android, linux, macos, windows or browser"],
      ["--presence <presence>", "online, stale or offline"],
      ["--group <group>", "only devices in this group, by id or name"],
      ["--identifier <identifier>", "only the device with this identifier"],
      ["--limit <number>", "how many to show, or all; 200 if left out"],
    ],
    examples: ["devices list", "devices list --presence online --group pilots", "devices list --limit all --json"],
    run: list,
  },
  { name: "get", summary: "Show one device", args: [deviceArgument], examples: ["devices get dev_…"], run: get },
  {
    name: "state",
    summary: "Show what a device is to run beside what it says it runs",
    args: [deviceArgument],
    examples: ["devices state dev_…", "devices state kiosk-0042 --json"],
    run: state,
  },
  {
    name: "approve",
    summary: "Approve a device that waits for it",
    args: [deviceArgument],
    examples: ["devices approve dev_…"],
    run: (context, input) => act(context, input, "is active", (clients, id) => clients.devices.approveDevice({ id })),
  },
  {
    name: "revoke",
    summary: "Revoke a device: when the command ends, no service accepts its credentials any more",
    args: [deviceArgument],
    options: [["--reason <text>", "why, for the record"]],
    examples: ["devices revoke dev_…", 'devices revoke dev_… --reason "stolen"'],
    run: (context, input) =>
      act(context, input, "is revoked; nothing accepts it any more", (clients, id) =>
        clients.devices.revokeDevice({ id, reason: input.text("reason") ?? "" }),
      ),
  },
  {
    name: "allow-reenrolment",
    summary: "Allow a device's identifier to be registered anew, once",
    args: [deviceArgument],
    examples: ["devices allow-reenrolment dev_…"],
    run: (context, input) =>
      act(context, input, "may be registered anew, once", (clients, id) => clients.devices.allowReenrolment({ id })),
  },
  {
    name: "label",
    summary: "Set or remove labels of a device, or its name",
    details: "key=value sets a label, key= removes it; the other labels stay.",
    args: [deviceArgument, ["[labels...]", "labels, key=value"]],
    options: [["--display-name <name>", "name for people"]],
    examples: ["devices label dev_… site=berlin ring=canary", 'devices label dev_… ring= --display-name "Kiosk 42"'],
    run: label,
  },
];

type Clients = Awaited<ReturnType<CommandContext["connect"]>>["clients"];

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const state = choose(input, "state", Device_StateSchema);
  const platform = choose(input, "platform", PlatformSchema);
  const presence = choose(input, "presence", Device_PresenceSchema);
  const { clients } = await context.connect();
  const group = input.text("group");
  const groupId = group === undefined ? "" : await resolveGroup(clients, group);
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.devices.listDevices({
      pageSize,
      pageToken,
      state,
      platform,
      presence,
      groupId,
      deviceIdentifier: input.text("identifier") ?? "",
    });
    return { items: answer.devices, nextPageToken: answer.nextPageToken };
  });
  const now = context.terminal.now();
  context.output.list({
    schema: DeviceSchema,
    key: "devices",
    items,
    truncated,
    empty: "No devices.",
    columns: [
      { title: "ID", value: (device) => device.id },
      { title: "IDENTIFIER", value: (device) => device.deviceIdentifier },
      { title: "PLATFORM", value: (device) => choiceWord(PlatformSchema, device.platform) },
      { title: "STATE", value: (device) => choiceWord(Device_StateSchema, device.state) },
      { title: "PRESENCE", value: (device) => choiceWord(Device_PresenceSchema, device.presence) },
      { title: "LAST HEARD", value: (device) => formatAge(device.lastHeartbeatTime, now) },
    ],
  });
}

async function get(context: CommandContext, input: CommandInput): Promise<void> {
  const { clients } = await context.connect();
  const device = await clients.devices.getDevice({ id: await resolveDevice(clients, input.args[0] ?? "") });
  context.output.show({ schema: DeviceSchema, item: device, facts: factsOf(device, context.terminal.now()) });
}

async function state(context: CommandContext, input: CommandInput): Promise<void> {
  const { clients } = await context.connect();
  const id = await resolveDevice(clients, input.args[0] ?? "");
  const [desired, observed] = await Promise.all([
    clients.devices.getDesiredState({ id }),
    clients.devices.getObservedState({ id }),
  ]);
  // The grant is the device's own; a person has no use for it.
  for (const model of desired.models) model.downloadGrant = "";
  const rows = [...new Set([...desired.models, ...observed.models].map((model) => model.modelId))].map((modelId) => ({
    modelId,
    wanted: desired.models.find((model) => model.modelId === modelId),
    seen: observed.models.find((model) => model.modelId === modelId),
  }));
  const forPeople = !context.output.json && !context.output.quiet;
  // A version that is desired comes with its number; only others need to be asked for.
  const others = rows.filter(({ wanted, seen }) => seen !== undefined && seen.versionId !== wanted?.versionId);
  const names = await readNames(
    clients,
    forPeople ? others.map(({ modelId, seen }) => ({ modelId, versionId: seen?.versionId ?? "" })) : [],
  );
  const text =
    rows.length === 0
      ? `${id} is to run nothing and reports nothing.`
      : context.output.table(rows, [
          { title: "MODEL", value: ({ modelId, wanted }) => wanted?.modelName || names.model(modelId) },
          { title: "DESIRED", value: ({ wanted }) => wanted?.version ?? "-" },
          {
            title: "OBSERVED",
            value: ({ wanted, seen }) =>
              seen === undefined
                ? "-"
                : seen.versionId === wanted?.versionId
                  ? wanted.version
                  : names.version(seen.versionId),
          },
          {
            title: "STATE",
            value: ({ seen }) => (seen === undefined ? "-" : choiceWord(ObservedState_StateSchema, seen.state)),
          },
          {
            title: "FAILURE",
            value: ({ seen }) => (seen === undefined ? "-" : choiceWord(ObservedState_FailureSchema, seen.failure)),
          },
        ]);
  context.output.result(
    { desired: toDocument(DesiredStateSchema, desired), observed: toDocument(ObservedStateSchema, observed) },
    text,
  );
}

async function act(
  context: CommandContext,
  input: CommandInput,
  outcome: string,
  call: (clients: Clients, id: string) => Promise<Device>,
): Promise<void> {
  const { clients } = await context.connect();
  const device = await call(clients, await resolveDevice(clients, input.args[0] ?? ""));
  context.output.show({
    schema: DeviceSchema,
    item: device,
    headline: `Device ${device.deviceIdentifier || device.id} ${outcome}.`,
    facts: [
      ["id", device.id],
      ["state", choiceWord(Device_StateSchema, device.state)],
    ],
  });
}

async function label(context: CommandContext, input: CommandInput): Promise<void> {
  const changes = input.rest.map(parseLabel);
  const displayName = input.text("display-name");
  if (changes.length === 0 && displayName === undefined) throw usageError("no label is given", "Give key=value.");
  const { clients } = await context.connect();
  const id = await resolveDevice(clients, input.args[0] ?? "");
  const before = await clients.devices.getDevice({ id });
  const labels = new Map(Object.entries(before.labels));
  for (const [key, value] of changes) {
    if (value === "") labels.delete(key);
    else labels.set(key, value);
  }
  const device = await clients.devices.updateDevice({
    id,
    displayName,
    labels: Object.fromEntries(labels),
    setLabels: changes.length > 0,
    etag: before.etag,
  });
  context.output.show({
    schema: DeviceSchema,
    item: device,
    headline: `Device ${device.deviceIdentifier} is changed.`,
    facts: factsOf(device, context.terminal.now()),
  });
}

/** Reads a label as people write it: `key=value`, or `key=` to remove it. Throws a usage error. */
export function parseLabel(text: string): [key: string, value: string] {
  const at = text.indexOf("=");
  const key = text.slice(0, at);
  if (at < 1 || key.length > 64)
    throw usageError(`"${text.slice(0, 40)}" is not a label`, "Give key=value, or key= to remove it.");
  return [key, text.slice(at + 1)];
}

function choose(input: CommandInput, name: string, desc: Parameters<typeof parseChoice>[0]): number {
  const text = input.text(name);
  return text === undefined ? 0 : parseChoice(desc, name, text);
}

function factsOf(device: Device, now: number): [string, string][] {
  return [
    ["id", device.id],
    ["identifier", device.deviceIdentifier],
    ["name", device.displayName],
    ["state", choiceWord(Device_StateSchema, device.state)],
    ["presence", choiceWord(Device_PresenceSchema, device.presence)],
    ["last heard", formatAge(device.lastHeartbeatTime, now)],
    ["platform", [choiceWord(PlatformSchema, device.platform), device.osVersion].join(" ").trim()],
    ["hardware", [device.manufacturer, device.hardwareModel].join(" ").trim()],
    ["SDK", device.sdkVersion],
    ["app", device.appVersion],
    [
      "labels",
      Object.entries(device.labels)
        .map(([key, value]) => `${key}=${value}`)
        .join(" "),
    ],
    ["groups", device.groupIds.join(", ")],
    ["re-enrolment", device.reenrolmentGranted ? "allowed once" : ""],
    ["clone signs", device.cloneSigns > 0 ? String(device.cloneSigns) : ""],
    ["registered", formatTime(device.createTime)],
  ];
}

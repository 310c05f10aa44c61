import { type DeviceGroup, DeviceGroupSchema } from "@octomesh/proto/octomesh/device/v1/device_group_pb";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { usageError } from "../command-error.ts";
import { formatTime } from "../format-time.ts";
import { resolveDevice, resolveGroup } from "../resolve-resource.ts";

const groupArgument = ["<group>", "id of the group, grp_…, or its name"] as const;
const devicesArgument = ["<devices...>", "ids or identifiers of devices, 1000 at most"] as const;

/** `octomil groups …`: sets of devices that rollouts can target. */
export const groupCommands: readonly CommandSpec[] = [
  {
    name: "create",
    summary: "Create an empty group",
    args: [["<name>", "name of the group"]],
    options: [["--description <text>", "what the group is for"]],
    examples: ["groups create pilots", 'groups create pilots --description "first to get anything"'],
    run: create,
  },
  {
    name: "list",
    summary: "List groups by name",
    options: [["--limit <number>", "how many to show, or all; 200 if left out"]],
    examples: ["groups list"],
    run: list,
  },
  { name: "get", summary: "Show one group", args: [groupArgument], examples: ["groups get pilots"], run: get },
  {
    name: "delete",
    summary: "Delete a group; its devices stay",
    args: [groupArgument],
    examples: ["groups delete pilots"],
    run: remove,
  },
  {
    name: "add",
    summary: "Add devices to a group",
    args: [groupArgument, devicesArgument],
    examples: ["groups add pilots dev_… dev_…"],
    run: (context, input) => change(context, input, "addGroupDevices"),
  },
  {
    name: "remove",
    summary: "Remove devices from a group",
    args: [groupArgument, devicesArgument],
    examples: ["groups remove pilots dev_…"],
    run: (context, input) => change(context, input, "removeGroupDevices"),
  },
];

async function create(context: CommandContext, input: CommandInput): Promise<void> {
  const { clients } = await context.connect();
  const group = await clients.deviceGroups.createDeviceGroup({
    displayName: input.args[0] ?? "",
    description: input.text("description") ?? "",
  });
  context.output.show({
    schema: DeviceGroupSchema,
    item: group,
    headline: `Group ${group.displayName} is created.`,
    facts: factsOf(group),
  });
}

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.deviceGroups.listDeviceGroups({ pageSize, pageToken });
    return { items: answer.deviceGroups, nextPageToken: answer.nextPageToken };
  });
  context.output.list({
    schema: DeviceGroupSchema,
    key: "device_groups",
    items,
    truncated,
    empty: "No groups yet.",
    columns: [
      { title: "ID", value: (group) => group.id },
      { title: "NAME", value: (group) => group.displayName },
      { title: "DEVICES", value: (group) => String(group.deviceCount), align: "right" },
      { title: "DESCRIPTION", value: (group) => group.description },
    ],
  });
}

async function get(context: CommandContext, input: CommandInput): Promise<void> {
  const { clients } = await context.connect();
  const group = await clients.deviceGroups.getDeviceGroup({ id: await resolveGroup(clients, input.args[0] ?? "") });
  context.output.show({
    schema: DeviceGroupSchema,
    item: group,
    facts: [["name", group.displayName], ...factsOf(group)],
  });
}

async function remove(context: CommandContext, input: CommandInput): Promise<void> {
  const { clients } = await context.connect();
  const id = await resolveGroup(clients, input.args[0] ?? "");
  await clients.deviceGroups.deleteDeviceGroup({ id });
  context.output.result({ deleted: id }, `Group ${input.args[0]} is deleted; its devices stay.`);
}

async function change(
  context: CommandContext,
  input: CommandInput,
  method: "addGroupDevices" | "removeGroupDevices",
): Promise<void> {
  if (input.rest.length > 1000) throw usageError("1000 devices at most at a time");
  const { clients } = await context.connect();
  const id = await resolveGroup(clients, input.args[0] ?? "");
  const deviceIds: string[] = [];
  for (const device of input.rest) deviceIds.push(await resolveDevice(clients, device));
  const group = await clients.deviceGroups[method]({ id, deviceIds });
  context.output.show({
    schema: DeviceGroupSchema,
    item: group,
    headline: `Group ${group.displayName} now has ${group.deviceCount} devices.`,
    facts: factsOf(group),
  });
}

function factsOf(group: DeviceGroup): [string, string][] {
  return [
    ["id", group.id],
    ["devices", String(group.deviceCount)],
    ["description", group.description],
    ["created", formatTime(group.createTime)],
  ];
}

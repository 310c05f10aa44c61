import { durationFromMs, durationMs } from "@bufbuild/protobuf/wkt";
import {
  EnvironmentSchema,
  type Organization,
  OrganizationSchema,
  PlanSchema,
} from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { DeleteOrganizationResponseSchema } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { CommandError, usageError } from "../command-error.ts";
import { formatTime } from "../format-time.ts";
import { toDocument } from "../output.ts";
import { choiceWord } from "../parse-choice.ts";
import { formatDuration, parseDuration } from "../parse-duration.ts";
import { profileOf } from "../profile-store.ts";

/** `octomil org …`: the organisation itself. */
export const orgCommands: readonly CommandSpec[] = [
  {
    name: "show",
    summary: "Show the organisation and its settings",
    examples: ["org show", "org show --json"],
    run: show,
  },
  {
    name: "settings",
    summary: "Show or change the organisation's settings",
    options: [
      ["--device-token-expiry <duration>", "how long a device access token lives, from 5m to 30d"],
      ["--display-name <name>", "name of the organisation"],
    ],
    examples: ["org settings", "org settings --device-token-expiry 48h"],
    run: settings,
  },
  {
    name: "delete",
    summary: "Delete the organisation and all it owns, in every service",
    details: "You are asked to type the organisation's name; a program gives it with --confirm. There is no way back.",
    options: [["--confirm <name>", "the organisation's name, repeated"]],
    examples: ["org delete", 'org delete --confirm "Acme Robotics" --json'],
    run: remove,
  },
];

async function show(context: CommandContext): Promise<void> {
  const { clients } = await context.connect();
  const organization = await clients.organizations.getOrganization({});
  context.output.show({ schema: OrganizationSchema, item: organization, facts: factsOf(organization) });
}

async function settings(context: CommandContext, input: CommandInput): Promise<void> {
  const expiry = input.text("device-token-expiry");
  const displayName = input.text("display-name");
  const seconds = expiry === undefined ? undefined : parseDuration(expiry);
  if (seconds !== undefined && (seconds < 300 || seconds > 2_592_000)) {
    throw usageError("--device-token-expiry is from 5m to 30d");
  }
  if (expiry === undefined && displayName === undefined) {
    await show(context);
    return;
  }
  const { clients } = await context.connect();
  const organization = await clients.organizations.updateOrganization({
    displayName,
    deviceTokenExpiry: seconds === undefined ? undefined : durationFromMs(seconds * 1000),
  });
  context.output.show({
    schema: OrganizationSchema,
    item: organization,
    headline: "The settings are changed.",
    facts: factsOf(organization),
  });
  if (expiry !== undefined) context.output.note("Tokens that were issued before keep their life.");
}

async function remove(context: CommandContext, input: CommandInput): Promise<void> {
  const connection = await context.connect();
  const organization = await connection.clients.organizations.getOrganization({});
  let confirmation = input.text("confirm");
  if (confirmation === undefined) {
    if (!context.terminal.canAsk) throw usageError("--confirm is missing", "Repeat the organisation's name.");
    context.output.warn(
      `This deletes ${organization.displayName} (${organization.id}), its sandbox, devices, models and rollouts, for good.`,
    );
    confirmation = await context.terminal.ask("Type the organisation's name to go on: ");
  }
  if (confirmation !== organization.displayName) {
    throw usageError("the confirmation does not repeat the organisation's name; nothing was deleted");
  }
  const answer = await connection.clients.organizations.deleteOrganization({ id: organization.id, confirmation });
  const remaining = answer.erasures.reduce((sum, erasure) => sum + erasure.remaining, 0n);
  await context.store.update((configuration) => {
    const profile = profileOf(configuration, connection.profileName);
    if (profile === undefined || connection.kind !== "session") return;
    delete profile.session;
    profile.org_id = "";
    profile.org_name = "";
  });
  context.output.result(
    toDocument(DeleteOrganizationResponseSchema, answer),
    [
      context.output.paint.green(`${organization.displayName} is deleted.`),
      context.output.table(answer.erasures, [
        { title: "SERVICE", value: (erasure) => erasure.service },
        {
          title: "ERASED",
          value: (erasure) => String(Object.values(erasure.erased).reduce((sum, count) => sum + count, 0n)),
          align: "right",
        },
        { title: "REMAINING", value: (erasure) => String(erasure.remaining), align: "right" },
      ]),
    ].join("\n"),
  );
  if (remaining > 0n) {
    throw new CommandError(`${remaining} rows or files remain`, { hint: "Repeat the command: it erases the rest." });
  }
}

function factsOf(organization: Organization): [string, string][] {
  const expiry = organization.deviceTokenExpiry;
  return [
    ["name", organization.displayName],
    ["id", organization.id],
    ["environment", choiceWord(EnvironmentSchema, organization.environment)],
    ["counterpart", organization.pairedId],
    ["plan", choiceWord(PlanSchema, organization.plan)],
    ["device token expiry", expiry === undefined ? "" : formatDuration(durationMs(expiry) / 1000)],
    ["created", formatTime(organization.createTime)],
  ];
}

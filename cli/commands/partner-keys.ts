import { EnvironmentSchema } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { type PartnerKey, PartnerKeySchema } from "@octomesh/proto/octomesh/identity/v1/partner_key_pb";
import { checkId } from "../check-id.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { credentialState } from "../credential-state.ts";
import { formatAge, formatTime } from "../format-time.ts";
import { choiceWord } from "../parse-choice.ts";
import { environmentOptions, parseEnvironment } from "../parse-environment.ts";

/** `octomil partner-keys …`: the keys by which partners' backends read verdicts. */
export const partnerKeyCommands: readonly CommandSpec[] = [
  {
    name: "create",
    summary: "Create a key that reads verdicts and nothing else, and show it, once",
    details: "Under a key of the sandbox test sessions, such as test_de_clean, answer fixed verdicts.",
    options: [["--name <name>", "name for people"], ...environmentOptions],
    examples: [
      'partner-keys create --name "shop-backend"',
      "partner-keys create --name ci --env test",
      "partner-keys create --name shop-backend --quiet > partner-key",
    ],
    run: create,
  },
  {
    name: "list",
    summary: "List partner keys, those of the sandbox included",
    options: [["--limit <number>", "how many to show, or all; 200 if left out"]],
    examples: ["partner-keys list", "partner-keys list --json"],
    run: list,
  },
  {
    name: "revoke",
    summary: "Revoke a partner key: it reads no verdict any more",
    args: [["<id>", "id of the key, pky_…"]],
    examples: ["partner-keys revoke pky_…"],
    run: revoke,
  },
];

async function create(context: CommandContext, input: CommandInput): Promise<void> {
  const name = input.required("name");
  const environment = parseEnvironment(input);
  const { clients } = await context.connect();
  const key = await clients.edgeCredentials.createPartnerKey({ name, environment });
  context.output.show({
    schema: PartnerKeySchema,
    item: key,
    essential: key.partnerKey,
    headline: `Partner key ${key.name} is created.`,
    facts: [["key", context.output.paint.bold(key.partnerKey)], ...factsOf(key)],
  });
  if (key.partnerKey === "") {
    context.output.warn("The key itself was shown when it was created; it cannot be read again.");
  } else context.output.note("Store the key now: it is shown this once and cannot be read again.");
}

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.edgeCredentials.listPartnerKeys({ pageSize, pageToken });
    return { items: answer.partnerKeys, nextPageToken: answer.nextPageToken };
  });
  const now = context.terminal.now();
  context.output.list({
    schema: PartnerKeySchema,
    key: "partner_keys",
    items,
    truncated,
    empty: "No partner keys yet.",
    columns: [
      { title: "ID", value: (key) => key.id },
      { title: "NAME", value: (key) => key.name },
      { title: "PREFIX", value: (key) => `${key.prefix}…` },
      { title: "ENV", value: (key) => choiceWord(EnvironmentSchema, key.environment) },
      { title: "STATE", value: (key) => credentialState(key, now) },
      { title: "LAST USED", value: (key) => formatAge(key.lastUseTime, now, "never") },
    ],
  });
}

async function revoke(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("pky", input.args[0] ?? "");
  const { clients } = await context.connect();
  const key = await clients.edgeCredentials.revokePartnerKey({ id });
  context.output.show({
    schema: PartnerKeySchema,
    item: key,
    headline: `Partner key ${key.name} is revoked; it reads no verdict any more.`,
    facts: factsOf(key),
  });
}

function factsOf(key: PartnerKey): [string, string][] {
  return [
    ["id", key.id],
    ["prefix", key.prefix === "" ? "" : `${key.prefix}…`],
    ["environment", choiceWord(EnvironmentSchema, key.environment)],
    ["created", formatTime(key.createTime)],
    ["last used", formatTime(key.lastUseTime)],
    ["revoked", formatTime(key.revokeTime)],
  ];
}

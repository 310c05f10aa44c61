import { type ApiKey, ApiKey_StateSchema, ApiKeySchema } from "@octomesh/proto/octomesh/identity/v1/api_key_pb";
import { Environment, EnvironmentSchema } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { checkId } from "../check-id.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { formatAge, formatTime } from "../format-time.ts";
import { choiceWord } from "../parse-choice.ts";
import { allScopes, parseScopes, scopeName } from "../parse-scopes.ts";
import { shortenList } from "../shorten-list.ts";
import { timeAfter } from "../time-after.ts";

const scopeList = allScopes()
  .map(({ name, meaning }) => `  ${name.padEnd(18)}  ${meaning}`)
  .join("\n");

/** `octomil api-keys …`: the keys by which an organisation's servers call the API. */
export const apiKeyCommands: readonly CommandSpec[] = [
  {
    name: "create",
    summary: "Create an API key and show it, once",
    details: `Scopes:\n${scopeList}`,
    options: [
      ["--name <name>", "name for people"],
      ["--scopes <list>", "what the key may do, separated by commas"],
      ["--test", "a key of the sandbox, edg_test_…, instead of a live one"],
      ["--expires <duration>", "when the key lapses, such as 90d; never if left out"],
    ],
    examples: [
      'api-keys create --name "ci-pipeline" --scopes models:read,models:write,rollouts:write',
      'api-keys create --name "nightly" --scopes models:read --test --expires 90d',
      "api-keys create --name deploy --scopes models:write --quiet > key.txt",
    ],
    run: create,
  },
  {
    name: "list",
    summary: "List API keys, those of the sandbox included",
    details: "Long lists of scopes are cut; `octomil api-keys get` shows them all.",
    options: [["--limit <number>", "how many to show, or all; 200 if left out"]],
    examples: ["api-keys list", "api-keys list --json"],
    run: list,
  },
  {
    name: "get",
    summary: "Show one API key, without the key itself",
    args: [["<id>", "id of the key, key_…"]],
    examples: ["api-keys get key_…"],
    run: get,
  },
  {
    name: "revoke",
    summary: "Revoke an API key: when the command ends, no service accepts it any more",
    args: [["<id>", "id of the key, key_…"]],
    examples: ["api-keys revoke key_…"],
    run: revoke,
  },
];

async function create(context: CommandContext, input: CommandInput): Promise<void> {
  const name = input.required("name");
  const scopes = parseScopes(input.required("scopes"));
  const expireTime = timeAfter(input.text("expires"), context.terminal.now());
  const { clients } = await context.connect();
  const key = await clients.apiKeys.createApiKey({
    name,
    scopes,
    environment: input.flag("test") ? Environment.TEST : Environment.LIVE,
    expireTime,
  });
  context.output.show({
    schema: ApiKeySchema,
    item: key,
    essential: key.apiKey,
    headline: `API key ${key.name} is created.`,
    facts: [["key", context.output.paint.bold(key.apiKey)], ...factsOf(key)],
  });
  if (key.apiKey === "") context.output.warn("The key itself was shown when it was created; it cannot be read again.");
  else context.output.note("Store the key now: it is shown this once and cannot be read again.");
}

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.apiKeys.listApiKeys({ pageSize, pageToken });
    return { items: answer.apiKeys, nextPageToken: answer.nextPageToken };
  });
  const now = context.terminal.now();
  context.output.list({
    schema: ApiKeySchema,
    key: "api_keys",
    items,
    truncated,
    empty: "No API keys yet.",
    columns: [
      { title: "ID", value: (key) => key.id },
      { title: "NAME", value: (key) => key.name },
      { title: "PREFIX", value: (key) => `${key.prefix}…` },
      { title: "ENV", value: (key) => choiceWord(EnvironmentSchema, key.environment) },
      { title: "STATE", value: (key) => choiceWord(ApiKey_StateSchema, key.state) },
      { title: "SCOPES", value: (key) => shortenList(key.scopes.map(scopeName), 30) },
      { title: "EXPIRES", value: (key) => formatAge(key.expireTime, now, "never") },
      { title: "LAST USED", value: (key) => formatAge(key.lastUseTime, now, "never") },
    ],
  });
}

async function get(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("key", input.args[0] ?? "");
  const { clients } = await context.connect();
  const key = await clients.apiKeys.getApiKey({ id });
  context.output.show({ schema: ApiKeySchema, item: key, facts: [["name", key.name], ...factsOf(key)] });
}

async function revoke(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("key", input.args[0] ?? "");
  const { clients } = await context.connect();
  const key = await clients.apiKeys.revokeApiKey({ id });
  context.output.show({
    schema: ApiKeySchema,
    item: key,
    headline: `API key ${key.name} is revoked; no service accepts it any more.`,
    facts: factsOf(key),
  });
}

function factsOf(key: ApiKey): [string, string][] {
  return [
    ["id", key.id],
    ["prefix", key.prefix === "" ? "" : `${key.prefix}…`],
    ["environment", choiceWord(EnvironmentSchema, key.environment)],
    ["state", choiceWord(ApiKey_StateSchema, key.state)],
    ["scopes", key.scopes.map(scopeName).join(", ")],
    ["created", formatTime(key.createTime)],
    ["expires", formatTime(key.expireTime, "never")],
    ["last used", formatTime(key.lastUseTime)],
    ["revoked", formatTime(key.revokeTime)],
  ];
}

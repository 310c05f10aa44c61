import { durationFromMs } from "@bufbuild/protobuf/wkt";
import {
  type BootstrapToken,
  BootstrapToken_Kind,
  BootstrapToken_KindSchema,
  BootstrapToken_StateSchema,
  BootstrapTokenSchema,
} from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_pb";
import { checkId } from "../check-id.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { usageError } from "../command-error.ts";
import { formatAge, formatTime } from "../format-time.ts";
import { choiceWord } from "../parse-choice.ts";
import { parseDuration } from "../parse-duration.ts";
import { resolveGroup } from "../resolve-resource.ts";

/** `octomil bootstrap-tokens …`: the tokens by which devices register. */
export const bootstrapTokenCommands: readonly CommandSpec[] = [
  {
    name: "create",
    summary: "Create a token by which devices register and show it, once",
    details:
      "Without --enrolment the token is for one device and good for 15 minutes, as a backend mints it. An enrolment " +
      "token is embedded in an app: it has a number of uses, may be bound to identifiers, may demand approval, and " +
      "`octomil bootstrap-tokens revoke` is its kill switch.",
    options: [
      ["--enrolment", "a token for many devices"],
      ["--max-uses <number>", "how many devices may register by an enrolment token"],
      ["--name <name>", "name for people"],
      ["--lifetime <duration>", "how long it is good, such as 15m or 30d; up to a year"],
      ["--identifier <identifier>...", "admit this device identifier only; may be repeated"],
      ["--group <group>...", "group that devices join, by id or name; may be repeated"],
      ["--approval", "devices wait for octomil devices approve"],
    ],
    examples: [
      "bootstrap-tokens create --identifier kiosk-0042",
      'bootstrap-tokens create --enrolment --max-uses 5000 --name "app 3.2" --lifetime 30d',
      "bootstrap-tokens create --enrolment --max-uses 100 --approval --group pilots",
    ],
    run: create,
  },
  {
    name: "list",
    summary: "List bootstrap and enrolment tokens",
    options: [["--limit <number>", "how many to show, or all; 200 if left out"]],
    examples: ["bootstrap-tokens list", "bootstrap-tokens list --limit all --json"],
    run: list,
  },
  {
    name: "get",
    summary: "Show one token, without the token itself",
    args: [["<id>", "id of the token, btk_…"]],
    examples: ["bootstrap-tokens get btk_…"],
    run: get,
  },
  {
    name: "revoke",
    summary: "Kill a token: no device registers with it any more, those that did stay",
    args: [["<id>", "id of the token, btk_…"]],
    examples: ["bootstrap-tokens revoke btk_…"],
    run: revoke,
  },
];

async function create(context: CommandContext, input: CommandInput): Promise<void> {
  const enrolment = input.flag("enrolment");
  if (!enrolment && input.text("max-uses") !== undefined) {
    throw usageError("--max-uses belongs to --enrolment", "A token without --enrolment is good for one device.");
  }
  if (enrolment && input.text("max-uses") === undefined) {
    throw usageError("--max-uses is missing", "Say how many devices may register, such as --max-uses 1000.");
  }
  const maxUses = input.integer("max-uses", { min: 1, max: 1_000_000, fallback: 1 });
  const lifetime = input.text("lifetime");
  const { clients } = await context.connect();
  const groupIds: string[] = [];
  for (const group of input.texts("group")) groupIds.push(await resolveGroup(clients, group));
  const token = await clients.bootstrapTokens.createBootstrapToken({
    kind: enrolment ? BootstrapToken_Kind.ENROLMENT : BootstrapToken_Kind.SINGLE_USE,
    name: input.text("name") ?? "",
    maxUses: enrolment ? maxUses : 0,
    lifetime: lifetime === undefined ? undefined : durationFromMs(parseDuration(lifetime) * 1000),
    allowedIdentifiers: [...input.texts("identifier")],
    approvalRequired: input.flag("approval"),
    groupIds,
  });
  context.output.show({
    schema: BootstrapTokenSchema,
    item: token,
    essential: token.token,
    headline: enrolment ? "Enrolment token is created." : "Bootstrap token is created.",
    facts: [["token", context.output.paint.bold(token.token)], ...factsOf(token)],
  });
  context.output.note("Store the token now: it is shown this once and cannot be read again.");
}

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.bootstrapTokens.listBootstrapTokens({ pageSize, pageToken });
    return { items: answer.bootstrapTokens, nextPageToken: answer.nextPageToken };
  });
  const now = context.terminal.now();
  context.output.list({
    schema: BootstrapTokenSchema,
    key: "bootstrap_tokens",
    items,
    truncated,
    empty: "No tokens yet.",
    columns: [
      { title: "ID", value: (token) => token.id },
      { title: "KIND", value: (token) => choiceWord(BootstrapToken_KindSchema, token.kind) },
      { title: "NAME", value: (token) => token.name },
      { title: "STATE", value: (token) => choiceWord(BootstrapToken_StateSchema, token.state) },
      { title: "USES", value: (token) => `${token.uses}/${token.maxUses}`, align: "right" },
      { title: "EXPIRES", value: (token) => formatAge(token.expireTime, now, "never") },
    ],
  });
}

async function get(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("btk", input.args[0] ?? "");
  const { clients } = await context.connect();
  const token = await clients.bootstrapTokens.getBootstrapToken({ id });
  context.output.show({ schema: BootstrapTokenSchema, item: token, facts: factsOf(token) });
}

async function revoke(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("btk", input.args[0] ?? "");
  const { clients } = await context.connect();
  const token = await clients.bootstrapTokens.revokeBootstrapToken({ id });
  context.output.show({
    schema: BootstrapTokenSchema,
    item: token,
    headline: `Token ${token.id} is revoked; no device registers with it any more.`,
    facts: factsOf(token),
  });
}

function factsOf(token: BootstrapToken): [string, string][] {
  return [
    ["id", token.id],
    ["kind", choiceWord(BootstrapToken_KindSchema, token.kind)],
    ["name", token.name],
    ["state", choiceWord(BootstrapToken_StateSchema, token.state)],
    ["uses", `${token.uses} of ${token.maxUses}`],
    ["identifiers", token.allowedIdentifiers.join(", ")],
    ["groups", token.groupIds.join(", ")],
    ["approval", token.approvalRequired ? "required" : ""],
    ["created", formatTime(token.createTime)],
    ["expires", formatTime(token.expireTime)],
    ["revoked", formatTime(token.revokeTime)],
  ];
}

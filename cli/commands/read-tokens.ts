import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { ReadTokenSchema } from "@octomesh/proto/octomesh/identity/v1/read_token_pb";
import { checkId } from "../check-id.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { usageError } from "../command-error.ts";
import { formatTime } from "../format-time.ts";
import { parseDuration } from "../parse-duration.ts";
import { allScopes, parseScopes, scopeName } from "../parse-scopes.ts";

const scopeList = allScopes()
  .filter(({ name }) => name.endsWith(":read"))
  .map(({ name, meaning }) => `  ${name.padEnd(18)}  ${meaning}`)
  .join("\n");

/** `octomil read-tokens …`: short-lived tokens that may only read, fit for a browser. */
export const readTokenCommands: readonly CommandSpec[] = [
  {
    name: "create",
    summary: "Create a short-lived token that may only read and show it, once",
    details: `It may do no more than whoever creates it, and tokens are not listed. Scopes:\n${scopeList}`,
    options: [
      ["--scopes <list>", "what the token may read, separated by commas"],
      ["--lifetime <duration>", "how long it is good, up to 1h; 15m if left out"],
    ],
    examples: [
      "read-tokens create --scopes telemetry:read",
      "read-tokens create --scopes devices:read,telemetry:read --lifetime 1h --quiet",
    ],
    run: create,
  },
  {
    name: "revoke",
    summary: "Revoke a read token before it lapses",
    args: [["<id>", "id of the token, rdt_…"]],
    examples: ["read-tokens revoke rdt_…"],
    run: revoke,
  },
];

async function create(context: CommandContext, input: CommandInput): Promise<void> {
  const scopes = parseScopes(input.required("scopes"));
  const writing = scopes.map(scopeName).find((name) => !name.endsWith(":read"));
  if (writing !== undefined) throw usageError(`a read token cannot hold ${writing}`, "Give scopes that end in :read.");
  const lifetime = input.text("lifetime");
  const seconds = lifetime === undefined ? undefined : parseDuration(lifetime);
  if (seconds !== undefined && seconds > 3600) throw usageError("--lifetime of a read token is 1h at most");
  const { clients } = await context.connect();
  const token = await clients.readTokens.createReadToken({
    scopes,
    lifetime: seconds === undefined ? undefined : durationFromMs(seconds * 1000),
  });
  context.output.show({
    schema: ReadTokenSchema,
    item: token,
    essential: token.token,
    headline: "Read token is created.",
    facts: [
      ["token", context.output.paint.bold(token.token)],
      ["id", token.id],
      ["scopes", token.scopes.map(scopeName).join(", ")],
      ["expires", formatTime(token.expireTime)],
    ],
  });
  if (token.token === "") {
    context.output.warn("The token itself was shown when it was created; it cannot be read again.");
  } else context.output.note("Store the token now: it is shown this once and cannot be read again.");
}

async function revoke(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("rdt", input.args[0] ?? "");
  const { clients } = await context.connect();
  await clients.readTokens.revokeReadToken({ id });
  context.output.result({ revoked: id }, `Read token ${id} is revoked; nothing is read with it any more.`, id);
}

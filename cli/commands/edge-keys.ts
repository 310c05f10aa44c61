import { type EdgeSigningKey, EdgeSigningKeySchema } from "@octomesh/proto/octomesh/identity/v1/edge_signing_key_pb";
import type { Clients } from "@octomesh/sdk";
import { checkId } from "../check-id.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { usageError } from "../command-error.ts";
import { credentialState } from "../credential-state.ts";
import { createEdgeKeyPair, readEdgePublicKey } from "../edge-key-pair.ts";
import { formatAge, formatTime } from "../format-time.ts";
import { explainLicenseRefusal } from "../license-refusal.ts";
import { readSmallFile } from "../read-small-file.ts";
import { readLicenseNames } from "../resource-names.ts";
import { stageFiles } from "../staged-files.ts";
import { createUndoList } from "../undo-list.ts";

/** `octomil edge-keys …`: the keys with which edges sign what they report and measure. */
export const edgeKeyCommands: readonly CommandSpec[] = [
  {
    name: "register",
    summary: "Make an edge's Ed25519 signing key and register its public half",
    details:
      "The private half is made on this machine and stays here: --out is a new file of mode 0600 with its seed in base64, " +
      "as the edge reads it in EDGE_SIGNING_KEY or EDGE_SIGNING_KEY_FILE. The id that is answered is the edge's " +
      "EDGE_SIGNING_KEY_ID. With --public-key the key is yours: PEM, or base64 of its 32 bytes.",
    options: [
      ["--license <id>", "the licence that the key belongs to, lic_…"],
      ["--out <file>", "where the new private key is written"],
      ["--public-key <file>", "register this public key instead of making one"],
      ["--force", "replace the file of --out if it is there"],
    ],
    examples: [
      "edge-keys register --license lic_… --out signing-key",
      "edge-keys register --license lic_… --public-key edge-public.pem",
    ],
    run: register,
  },
  {
    name: "list",
    summary: "List the signing keys of edges",
    options: [
      ["--license <id>", "only those of this licence, lic_…"],
      ["--limit <number>", "how many to show, or all; 200 if left out"],
    ],
    examples: ["edge-keys list", "edge-keys list --license lic_… --json"],
    run: list,
  },
  {
    name: "revoke",
    summary: "Revoke an edge's signing key: nothing that it signs is taken any more",
    args: [["<id>", "id of the key, esk_…"]],
    examples: ["edge-keys revoke esk_…"],
    run: revoke,
  },
];

async function register(context: CommandContext, input: CommandInput): Promise<void> {
  const licenseKeyId = checkId("lic", input.required("license"));
  const publicKeyFile = input.text("public-key");
  if (publicKeyFile === undefined) {
    await registerNew(context, licenseKeyId, input.required("out"), input.flag("force"));
    return;
  }
  if (input.text("out") !== undefined || input.flag("force")) {
    throw usageError(
      "--public-key excludes --out and --force",
      "There is no private key to write: it is yours already.",
    );
  }
  const publicKey = readEdgePublicKey(await readSmallFile(publicKeyFile));
  const { clients } = await context.connect();
  show(context, await registerEdgeKey(clients, licenseKeyId, publicKey));
}

async function registerNew(context: CommandContext, licenseKeyId: string, out: string, force: boolean): Promise<void> {
  const { seed, publicKey } = createEdgeKeyPair();
  const files = await stageFiles([out], { force });
  const undo = createUndoList(context.output);
  let key: EdgeSigningKey;
  try {
    await files.write(out, `${seed}\n`);
    const { clients } = await context.connect();
    key = await registerEdgeKey(clients, licenseKeyId, publicKey);
    const { id } = key;
    undo.did(`edge-keys revoke ${id}`, () => clients.edgeCredentials.revokeEdgeSigningKey({ id }));
    context.terminal.signal.throwIfAborted();
    await files.commit();
  } catch (error) {
    await files.discard();
    await undo.undo();
    throw error;
  }
  show(context, key);
  context.output.note(`The private key is in ${out}: keep it there, and nowhere else.`);
}

/** Registers a public key, 32 bytes, for a licence. Refusals that concern the licence say so. */
export async function registerEdgeKey(
  clients: Pick<Clients, "edgeCredentials">,
  licenseKeyId: string,
  publicKey: Uint8Array,
): Promise<EdgeSigningKey> {
  try {
    return await clients.edgeCredentials.registerEdgeSigningKey({ licenseKeyId, publicKey });
  } catch (error) {
    throw explainLicenseRefusal(error, "edge-keys");
  }
}

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const license = input.text("license");
  const licenseKeyId = license === undefined ? "" : checkId("lic", license);
  const limit = parseLimit(input.text("limit"));
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.edgeCredentials.listEdgeSigningKeys({ pageSize, pageToken, licenseKeyId });
    return { items: answer.edgeSigningKeys, nextPageToken: answer.nextPageToken };
  });
  const forPeople = !context.output.json && !context.output.quiet;
  const nameOf = await readLicenseNames(clients, forPeople ? items.map((key) => key.licenseKeyId) : []);
  const now = context.terminal.now();
  context.output.list({
    schema: EdgeSigningKeySchema,
    key: "edge_signing_keys",
    items,
    truncated,
    empty: "No signing keys yet.",
    columns: [
      { title: "ID", value: (key) => key.id },
      { title: "LICENCE", value: (key) => nameOf(key.licenseKeyId) },
      { title: "PUBLIC KEY", value: (key) => base64Of(key.publicKey) },
      { title: "STATE", value: (key) => credentialState(key, now) },
      { title: "CREATED", value: (key) => formatAge(key.createTime, now, "") },
    ],
  });
}

async function revoke(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("esk", input.args[0] ?? "");
  const { clients } = await context.connect();
  const key = await clients.edgeCredentials.revokeEdgeSigningKey({ id });
  context.output.show({
    schema: EdgeSigningKeySchema,
    item: key,
    headline: `Signing key ${key.id} is revoked; nothing that it signs is taken any more.`,
    facts: factsOf(key),
  });
}

function show(context: CommandContext, key: EdgeSigningKey): void {
  context.output.show({
    schema: EdgeSigningKeySchema,
    item: key,
    headline: `Signing key ${key.id} is registered.`,
    facts: factsOf(key),
  });
}

function factsOf(key: EdgeSigningKey): [string, string][] {
  return [
    ["id", key.id],
    ["licence", key.licenseKeyId],
    ["public key", base64Of(key.publicKey)],
    ["created", formatTime(key.createTime)],
    ["revoked", formatTime(key.revokeTime)],
  ];
}

function base64Of(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("base64");
}

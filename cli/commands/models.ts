import { ArtifactFormatSchema } from "@octomesh/proto/octomesh/model/v1/manifest_pb";
import { type Model, ModelSchema } from "@octomesh/proto/octomesh/model/v1/model_pb";
import {
  type ModelVersion,
  ModelVersion_StateSchema,
  ModelVersionSchema,
} from "@octomesh/proto/octomesh/model/v1/model_version_pb";
import { type Clients, isReason } from "@octomesh/sdk";
import { isIdOf } from "../check-id.ts";
import { checkModelName } from "../check-model-name.ts";
import { checkVersionReference } from "../check-version.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { formatBytes } from "../format-bytes.ts";
import { formatTime } from "../format-time.ts";
import { choiceWord } from "../parse-choice.ts";

const modelArgument = ["<model>", "name or id of the model"] as const;

/** `octomil models …`: models and their versions. */
export const modelCommands: readonly CommandSpec[] = [
  {
    name: "list",
    summary: "List models by name",
    options: [["--limit <number>", "how many to show, or all; 200 if left out"]],
    examples: ["models list", "models list --json"],
    run: list,
  },
  { name: "get", summary: "Show one model", args: [modelArgument], examples: ["models get vad"], run: get },
  {
    name: "create",
    summary: "Create a model, without versions",
    args: [["<name>", "lower-case letters, digits, dots, dashes and underscores"]],
    options: [["--description <text>", "what the model is for"]],
    examples: ['models create vad --description "finds speech"'],
    run: create,
  },
  {
    name: "delete",
    summary: "Delete a model that no rollout refers to, with its versions",
    args: [modelArgument],
    examples: ["models delete vad"],
    run: remove,
  },
  {
    name: "versions",
    summary: "List a model's versions, newest first",
    args: [modelArgument],
    options: [["--limit <number>", "how many to show, or all; 200 if left out"]],
    examples: ["models versions vad"],
    run: versions,
  },
  {
    name: "version",
    summary: "Show one version of a model",
    args: [modelArgument, ["[version]", "number or id of the version; the newest if left out"]],
    examples: ["models version vad 1.2.0", "models version vad"],
    run: version,
  },
  {
    name: "deprecate",
    summary: "Withdraw a version from new rollouts; devices that run it go on",
    args: [modelArgument, ["<version>", "number or id of the version"]],
    examples: ["models deprecate vad 1.1.0"],
    run: deprecate,
  },
];

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.models.listModels({ pageSize, pageToken });
    return { items: answer.models, nextPageToken: answer.nextPageToken };
  });
  context.output.list({
    schema: ModelSchema,
    key: "models",
    items,
    truncated,
    empty: "No models yet: octomil push makes one.",
    columns: [
      { title: "ID", value: (model) => model.id },
      { title: "NAME", value: (model) => model.name },
      { title: "CREATED", value: (model) => formatTime(model.createTime) },
      { title: "DESCRIPTION", value: (model) => model.description },
    ],
  });
}

async function get(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkModelName(input.args[0] ?? "");
  const { clients } = await context.connect();
  const model = await clients.models.getModel({ id });
  context.output.show({ schema: ModelSchema, item: model, facts: modelFacts(model) });
}

async function create(context: CommandContext, input: CommandInput): Promise<void> {
  const name = checkModelName(input.args[0] ?? "");
  const { clients } = await context.connect();
  const model = await clients.models.createModel({
    name,
    description: input.text("description") ?? "",
  });
  context.output.show({
    schema: ModelSchema,
    item: model,
    headline: `Model ${model.name} is created.`,
    facts: modelFacts(model),
  });
}

async function remove(context: CommandContext, input: CommandInput): Promise<void> {
  const named = checkModelName(input.args[0] ?? "");
  const { clients } = await context.connect();
  const id = await idOf(clients, named);
  await clients.models.deleteModel({ id });
  context.output.result({ deleted: id }, `Model ${named} is deleted, with its versions.`);
}

async function versions(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const modelId = checkModelName(input.args[0] ?? "");
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.modelVersions.listModelVersions({ modelId, pageSize, pageToken });
    return { items: answer.modelVersions, nextPageToken: answer.nextPageToken };
  });
  context.output.list({
    schema: ModelVersionSchema,
    key: "model_versions",
    items,
    truncated,
    empty: "No versions yet: octomil push makes one.",
    essential: (item) => item.version,
    columns: [
      { title: "VERSION", value: (item) => item.version },
      { title: "ID", value: (item) => item.id },
      { title: "FORMAT", value: (item) => choiceWord(ArtifactFormatSchema, item.format) },
      { title: "SIZE", value: (item) => formatBytes(Number(item.artifact?.sizeBytes ?? 0n)), align: "right" },
      { title: "SHA-256", value: (item) => `${item.artifact?.sha256.slice(0, 12) ?? ""}…` },
      { title: "STATE", value: (item) => choiceWord(ModelVersion_StateSchema, item.state) },
      { title: "CREATED", value: (item) => formatTime(item.createTime) },
    ],
  });
}

async function version(context: CommandContext, input: CommandInput): Promise<void> {
  const modelId = checkModelName(input.args[0] ?? "");
  const number = checkVersionReference(input.args[1] ?? "latest");
  const { clients } = await context.connect();
  const found = await clients.modelVersions.getModelVersion({ modelId, version: number });
  context.output.show({ schema: ModelVersionSchema, item: found, facts: versionFacts(found, modelId) });
}

async function deprecate(context: CommandContext, input: CommandInput): Promise<void> {
  const modelId = checkModelName(input.args[0] ?? "");
  const number = checkVersionReference(input.args[1] ?? "");
  const { clients } = await context.connect();
  const changed = await clients.modelVersions.deprecateModelVersion({ modelId, version: number });
  context.output.show({
    schema: ModelVersionSchema,
    item: changed,
    headline: `Version ${changed.version} is withdrawn from new rollouts.`,
    facts: versionFacts(changed, modelId),
  });
}

/** The id for the answer; a key that may not read models gets the name back that it gave. */
async function idOf(clients: Pick<Clients, "models">, named: string): Promise<string> {
  if (isIdOf("mdl", named)) return named;
  try {
    return (await clients.models.getModel({ id: named })).id;
  } catch (error) {
    if (isReason(error, "SCOPE_MISSING")) return named;
    throw error;
  }
}

function modelFacts(model: Model): [string, string][] {
  return [
    ["name", model.name],
    ["id", model.id],
    ["description", model.description],
    ["created", formatTime(model.createTime)],
    ["changed", formatTime(model.updateTime)],
  ];
}

/** What there is to tell a person of a version. `model` is what the person calls its model. */
export function versionFacts(version: ModelVersion, model: string): [string, string][] {
  return [
    ["version", version.version],
    ["id", version.id],
    ["model", model],
    ["format", choiceWord(ArtifactFormatSchema, version.format)],
    ["size", formatBytes(Number(version.artifact?.sizeBytes ?? 0n))],
    ["SHA-256", version.artifact?.sha256 ?? ""],
    ["signed by", version.keyId],
    ["state", choiceWord(ModelVersion_StateSchema, version.state)],
    ["notes", version.releaseNotes],
    ["created", formatTime(version.createTime)],
  ];
}

import { extname } from "node:path";
import { ArtifactFormat, ArtifactFormatSchema } from "@octomesh/proto/octomesh/model/v1/manifest_pb";
import { type ModelVersion, ModelVersionSchema } from "@octomesh/proto/octomesh/model/v1/model_version_pb";
import { isReason } from "@octomesh/sdk";
import { checkModelName } from "../check-model-name.ts";
import { checkVersion } from "../check-version.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { CommandError, usageError } from "../command-error.ts";
import type { Connection } from "../connection.ts";
import { formatBytes } from "../format-bytes.ts";
import { parseChoice } from "../parse-choice.ts";
import { openProgress } from "../progress.ts";
import { checkFile, digestFile, type UploadFile, uploadArtifact } from "../upload.ts";
import { versionFacts } from "./models.ts";

const formatsByExtension: Readonly<Record<string, ArtifactFormat>> = {
  ".onnx": ArtifactFormat.ONNX,
  ".tflite": ArtifactFormat.TFLITE,
  ".mlmodel": ArtifactFormat.COREML,
  ".mlpackage": ArtifactFormat.COREML,
  ".gguf": ArtifactFormat.GGUF,
  ".safetensors": ArtifactFormat.SAFETENSORS,
};

/** `octomil push`: a file becomes a version of a model. */
export const pushCommand: CommandSpec = {
  name: "push",
  summary: "Publish a file as a version of a model",
  details:
    "The model is made if there is none of that name. The file is sent in chunks and its SHA-256 is checked by the " +
    "mesh; after an interruption the same command goes on where it stopped. Pushing the same file as the same version " +
    "again changes nothing; a version never changes.",
  args: [["<file>", "the model file"]],
  options: [
    ["--model <name>", "name of the model"],
    ["--version <version>", "version in the form of Semantic Versioning, such as 1.0.0"],
    ["--format <format>", "onnx, tflite, coreml, gguf, safetensors or custom; by the file's name if left out"],
    ["--notes <text>", "what changed"],
    ["--chunk-size <kibibytes>", "size of a chunk in KiB, from 16 to 8192; chosen by the file's size if left out"],
  ],
  examples: [
    "push model.onnx --model vad --version 1.0.0",
    'push model.onnx --model vad --version 1.1.0 --notes "quieter rooms" --json',
  ],
  run: push,
};

async function push(context: CommandContext, input: CommandInput): Promise<void> {
  const path = input.args[0] ?? "";
  const model = checkModelName(input.required("model"));
  const version = checkVersion(input.required("version"));
  await checkFile(path);
  const format = formatOf(path, input.text("format"));
  const chunkKibibytes = input.integer("chunk-size", { min: 16, max: 8192, fallback: 0 });
  const connection = await context.connect();
  const hidden = context.output.quiet || context.output.json;

  const file = await digest(context, path, hidden);
  const published = await findVersion(connection, model, version);
  if (published !== undefined) {
    if (published.artifact?.sha256 !== file.sha256) {
      throw new CommandError(`version ${version} of ${model} exists and holds other bytes`, {
        hint: "A version never changes: push the file under a new number.",
      });
    }
    show(context, published, model, `${model} ${version} is published already, with these bytes.`);
    return;
  }
  const bar = openProgress(context.terminal, {
    label: "uploading",
    total: file.sizeBytes,
    format: formatBytes,
    hidden,
  });
  let stored = 0;
  let begun = false;
  const artifact = await uploadArtifact({
    url: connection.url,
    clients: connection.clients,
    file,
    chunkBytes: chunkKibibytes === 0 ? undefined : chunkKibibytes * 1024,
    signal: context.terminal.signal,
    onProgress: (bytes) => {
      if (!begun && bytes > 0 && bytes < file.sizeBytes) {
        context.output.note(`Going on at ${formatBytes(bytes)} of ${formatBytes(file.sizeBytes)}.`);
      }
      begun = true;
      stored = bytes;
      bar.set(bytes);
    },
    onInterruption: (why) => context.output.note(`Interrupted (${why}); going on at ${formatBytes(stored)}.`),
  })
    .catch((error: unknown) => {
      if (context.terminal.signal.aborted && stored > 0) {
        context.output.note(`\n${formatBytes(stored)} are stored; the same command goes on from there.`);
      }
      throw error;
    })
    .finally(() => bar.end());

  // Not before there is something to publish: an upload that fails leaves no empty model.
  await ensureModel(connection, model);
  const created = await connection.clients.modelVersions.createModelVersion({
    modelId: model,
    version,
    artifactId: artifact.id,
    format,
    releaseNotes: input.text("notes") ?? "",
  });
  show(
    context,
    created,
    model,
    `${model} ${created.version} is published: ${formatBytes(file.sizeBytes)}, digest checked, signed.`,
  );
}

async function digest(context: CommandContext, path: string, hidden: boolean): Promise<UploadFile> {
  let bar: ReturnType<typeof openProgress> | undefined;
  try {
    return await digestFile(
      path,
      (read, total) => {
        // Only a large file takes long enough for a bar to be worth it.
        if (total < 64 * 1024 * 1024) return;
        bar ??= openProgress(context.terminal, { label: "digesting", total, format: formatBytes, hidden });
        bar.set(read);
      },
      context.terminal.signal,
    );
  } finally {
    bar?.end();
  }
}

async function findVersion(connection: Connection, model: string, version: string): Promise<ModelVersion | undefined> {
  try {
    return await connection.clients.modelVersions.getModelVersion({ modelId: model, version });
  } catch (error) {
    if (isReason(error, "RESOURCE_NOT_FOUND")) return undefined;
    throw error;
  }
}

async function ensureModel(connection: Connection, name: string): Promise<void> {
  try {
    await connection.clients.models.getModel({ id: name });
  } catch (error) {
    if (!isReason(error, "RESOURCE_NOT_FOUND")) throw error;
    await connection.clients.models.createModel({ name }).catch((failure: unknown) => {
      // Another push of the same model came first.
      if (!isReason(failure, "RESOURCE_EXISTS")) throw failure;
    });
  }
}

function formatOf(path: string, chosen: string | undefined): ArtifactFormat {
  if (chosen !== undefined) return parseChoice(ArtifactFormatSchema, "format", chosen);
  const format = formatsByExtension[extname(path).toLowerCase()];
  if (format === undefined) {
    throw usageError(
      `the format of ${path} is not clear from its name`,
      "Say it with --format, such as --format onnx.",
    );
  }
  return format;
}

function show(context: CommandContext, version: ModelVersion, model: string, headline: string): void {
  context.output.show({ schema: ModelVersionSchema, item: version, headline, facts: versionFacts(version, model) });
}

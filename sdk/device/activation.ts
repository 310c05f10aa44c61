import { DeviceError } from "./device-error.ts";

/** A version of a model that this device has verified. */
export interface VerifiedVersion {
  modelName: string;
  /** Such as `1.2.0`. */
  version: string;
  versionId: string;
  /** The rollout that brought it. */
  rolloutId: string;
  /** SHA-256 of the artifact, 64 lower-case hexadecimal digits. */
  sha256: string;
  sizeBytes: number;
}

/** One model on this device: the version that is active, and the one before, whose bytes are kept to fall back to. */
export interface ActiveModel {
  modelId: string;
  active: VerifiedVersion;
  previous?: VerifiedVersion;
}

/** Writes which versions are active as text, for the artifact store. */
export function encodeActivation(models: readonly ActiveModel[]): string {
  return `${JSON.stringify({ format: 1, models }, undefined, 2)}\n`;
}

/** Reads that text. Throws DeviceError STORE_CORRUPT for anything else: nothing of it may be trusted then. */
export function decodeActivation(text: string | undefined): ActiveModel[] {
  if (text === undefined) return [];
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new DeviceError("STORE_CORRUPT", "the record of active models is not JSON", { cause });
  }
  const isRecord =
    isObject(value) && value.format === 1 && Array.isArray(value.models) && value.models.every(isActiveModel);
  if (!isRecord) throw new DeviceError("STORE_CORRUPT", "the record of active models has an unknown format");
  return (value as unknown as { models: ActiveModel[] }).models;
}

/**
 * The models after a version became active: the one that was active becomes the one before, unless it is the same
 * version or the same bytes. Pure.
 */
export function activated(
  models: readonly ActiveModel[],
  modelId: string,
  version: VerifiedVersion,
): { models: ActiveModel[]; from: VerifiedVersion | undefined } {
  const current = models.find((model) => model.modelId === modelId);
  const from = current?.active;
  const isSame = from?.versionId === version.versionId;
  const previous = isSame ? current?.previous : from;
  const next: ActiveModel = { modelId, active: version, ...(previous === undefined ? {} : { previous }) };
  return { models: [...models.filter((model) => model !== current), next], from };
}

function isActiveModel(value: unknown): value is ActiveModel {
  return (
    isObject(value) &&
    typeof value.modelId === "string" &&
    isVersion(value.active) &&
    (value.previous === undefined || isVersion(value.previous))
  );
}

function isVersion(value: unknown): value is VerifiedVersion {
  return (
    isObject(value) &&
    ["modelName", "version", "versionId", "rolloutId"].every((field) => typeof value[field] === "string") &&
    typeof value.sha256 === "string" &&
    /^[0-9a-f]{64}$/.test(value.sha256) &&
    Number.isSafeInteger(value.sizeBytes)
  );
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

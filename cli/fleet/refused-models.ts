/** The models that the devices of a fleet refused and have not replaced since. */
export interface RefusedModels {
  /** A device refused a version of a model; `kind` says why, such as `ARTIFACT_DIGEST`. */
  refuse(deviceIndex: number, modelId: string, kind: string): void;
  /** A version of the model became active on the device after all. */
  accept(deviceIndex: number, modelId: string): void;
  /** How many models are refused, summed over devices. */
  count(): number;
  /** How many devices refuse at least one model. */
  devices(): number;
  /** How many models are refused for which reason. */
  byKind(): Record<string, number>;
}

/** Begins to count refused models. A device that refuses the same model again and again counts once. */
export function refusedModels(): RefusedModels {
  const standing = new Map<number, Map<string, string>>();
  const all = () => [...standing.values()].flatMap((models) => [...models.values()]);
  return {
    refuse(deviceIndex, modelId, kind) {
      const models = standing.get(deviceIndex) ?? new Map<string, string>();
      standing.set(deviceIndex, models.set(modelId, kind));
    },
    accept(deviceIndex, modelId) {
      const models = standing.get(deviceIndex);
      if (models?.delete(modelId) === true && models.size === 0) standing.delete(deviceIndex);
    },
    count: () => all().length,
    devices: () => standing.size,
    byKind() {
      const counts: Record<string, number> = {};
      for (const kind of all()) counts[kind] = (counts[kind] ?? 0) + 1;
      return counts;
    },
  };
}

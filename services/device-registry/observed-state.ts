import { type BootMessage, type BootOrder, followBoot } from "./boot-order.ts";

/** One model on a device, by the device's own account. Numbers are those of octomesh.device.v1.ObservedState. */
export interface ObservedModelRecord {
  readonly modelId: string;
  readonly versionId: string;
  readonly state: number;
  readonly failure: number;
  readonly previousVersionId: string;
}

/** A report of everything that runs on a device. */
export interface ObservedReport {
  readonly bootId: string;
  readonly sequence: bigint;
  readonly models: readonly ObservedModelRecord[];
}

/**
 * Takes a report into the order of a device's boots. It applies if it is the next of its boot or the first of a new
 * one; a report of a boot that another had followed, or one that was overtaken, changes nothing.
 */
export function followReport(
  order: BootOrder,
  report: { bootId: string; sequence: bigint },
): { applied: boolean; order: BootOrder } {
  const next: { message: BootMessage; order: BootOrder } = followBoot(order, report);
  return next.message === "newer" ? { applied: true, order: next.order } : { applied: false, order };
}

/** What to write so that stored models become the reported ones: the least that does. */
export function diffModels(
  stored: readonly ObservedModelRecord[],
  reported: readonly ObservedModelRecord[],
): { upsert: ObservedModelRecord[]; remove: ObservedModelRecord[] } {
  const before = new Map(stored.map((model) => [keyOf(model), model]));
  const after = new Map(reported.map((model) => [keyOf(model), model]));
  return {
    upsert: [...after].filter(([key, model]) => !isSame(before.get(key), model)).map(([, model]) => model),
    remove: [...before].filter(([key]) => !after.has(key)).map(([, model]) => model),
  };
}

/** The first version that a report names twice; undefined if it names each once. */
export function doubledVersion(models: readonly { modelId: string; versionId: string }[]): string | undefined {
  const seen = new Set<string>();
  for (const model of models) {
    const key = keyOf(model);
    if (seen.has(key)) return model.versionId;
    seen.add(key);
  }
  return undefined;
}

function keyOf(model: { modelId: string; versionId: string }): string {
  return `${model.modelId} ${model.versionId}`;
}

function isSame(left: ObservedModelRecord | undefined, right: ObservedModelRecord): boolean {
  return (
    left !== undefined &&
    left.state === right.state &&
    left.failure === right.failure &&
    left.previousVersionId === right.previousVersionId
  );
}

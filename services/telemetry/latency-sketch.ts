import { DDSketch } from "@datadog/sketches-js";

/** Relative error of every quantile: at most 1 %. */
export const relativeAccuracy = 0.01;

/** Measurements below this, in milliseconds, count as zero: it keeps a sketch to some 1,100 bins however long a call may take. */
export const smallestMs = 0.001;

/** Bin of the DDSketch's logarithmic mapping, and how many measurements fell into it. */
export type SketchBins = Map<number, number>;

/** Measurements, mergeable without loss: two sketches merge by adding what their bins hold. */
export interface LatencySketch {
  /** Measurements below `smallestMs`. */
  zeros: number;
  bins: SketchBins;
}

/** The mapping of DDSketch (Masson, Rim, Lee: "DDSketch", VLDB 2019, section 2.1), taken from the library that also reads. */
const { mapping } = new DDSketch({ relativeAccuracy });

/** A sketch of nothing. */
export function emptySketch(): LatencySketch {
  return { zeros: 0, bins: new Map() };
}

/** Adds one measurement, milliseconds, 0 or more and finite. */
export function addMeasurement(sketch: LatencySketch, ms: number): void {
  if (ms < smallestMs) sketch.zeros += 1;
  else addToBin(sketch, mapping.key(ms), 1);
}

/** Adds what `other` holds. */
export function mergeSketch(sketch: LatencySketch, other: LatencySketch): void {
  sketch.zeros += other.zeros;
  for (const [bin, count] of other.bins) addToBin(sketch, bin, count);
}

/** Adds a count to a bin, as rows of the database are read. */
export function addToBin(sketch: LatencySketch, bin: number, count: number): void {
  sketch.bins.set(bin, (sketch.bins.get(bin) ?? 0) + count);
}

/** The quantiles (each 0 to 1) of a sketch, within the relative accuracy; zeros where it is empty. */
export function quantilesOf(sketch: LatencySketch, quantiles: readonly number[]): number[] {
  const reader = new DDSketch({ relativeAccuracy });
  for (const [bin, count] of [...sketch.bins].sort(([a], [b]) => a - b)) reader.store.add(bin, count);
  reader.zeroCount = sketch.zeros;
  reader.count = reader.store.count + sketch.zeros;
  return quantiles.map((quantile) => (reader.count === 0 ? 0 : reader.getValueAtQuantile(quantile)));
}

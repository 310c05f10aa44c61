/** Numbers that are the same each time for a seed: uniform from 0 to 1, 1 excluded (mulberry32). */
export type Random = () => number;

export function createRandom(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), state | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** One of a list that is not empty. */
export function pick<T>(list: readonly T[], random: Random): T {
  const found = list[Math.floor(random() * list.length)];
  if (found === undefined) throw new Error("nothing to pick from");
  return found;
}

/** A standard normal number (Box and Muller). */
export function normal(random: Random): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** Whether a place belongs to the half that thresholds were taken from; all of a cell of 5 degrees are in one half. */
export function isCalibration(at: { readonly latitude: number; readonly longitude: number }): boolean {
  const cell = `${Math.floor(at.latitude / 5)},${Math.floor(at.longitude / 5)}`;
  let hash = 2166136261;
  for (const character of cell) hash = Math.imul(hash ^ character.charCodeAt(0), 16777619);
  // FNV-1a's low bits are the parity of its input: take one from the middle.
  return ((hash >>> 15) & 1) === 0;
}

import { usageError } from "./command-error.ts";

const unitSeconds: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400, w: 604_800 };
const pattern = /^(?:\d{1,9}[smhdw])+$/;

/**
 * Reads a duration as people write it, such as `48h`, `90d`, `15m`, `30s`, `2w` or `1h30m`, and returns whole seconds,
 * at least one. A number without its unit is refused, because nobody can tell what it means.
 *
 * Throws a usage error for anything else, and for more than a hundred years.
 */
export function parseDuration(text: string): number {
  const trimmed = text.trim().toLowerCase();
  if (!pattern.test(trimmed) || trimmed.length > 60) {
    throw usageError(
      `"${trimmed.slice(0, 40)}" is not a duration`,
      "Give a number and a unit, such as 30s, 15m, 48h, 90d or 2w.",
    );
  }
  let seconds = 0;
  for (const [, amount, unit] of trimmed.matchAll(/(\d+)([smhdw])/g)) {
    seconds += Number(amount) * (unitSeconds[unit ?? ""] ?? 0);
  }
  if (seconds < 1) throw usageError("a duration is at least one second");
  if (seconds > 3_155_760_000) throw usageError(`"${trimmed}" is longer than a hundred years`);
  return seconds;
}

/** Writes seconds in the largest units that keep them exact, two units at most: `172800` is `48h`, `5400` is `1h30m`. */
export function formatDuration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole === 0) return "0s";
  // Up to three days people count hours, as the settings do.
  if (whole >= 259_200) return join(Math.floor(whole / 86_400), "d", Math.floor((whole % 86_400) / 3600), "h");
  if (whole >= 3600) return join(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "m");
  return join(Math.floor(whole / 60), "m", whole % 60, "s");
}

function join(large: number, largeUnit: string, small: number, smallUnit: string): string {
  const parts = [large > 0 ? `${large}${largeUnit}` : "", small > 0 ? `${small}${smallUnit}` : ""].join("");
  return parts === "" ? `0${smallUnit}` : parts;
}

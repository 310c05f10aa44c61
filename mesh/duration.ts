const unitsMs: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/**
 * Milliseconds of a duration such as `30s`, `15m`, `48h`, `7d`, `1h30m` or `500ms`; undefined for anything else. Whole
 * numbers with a unit, largest first is not demanded, at most 10 years.
 */
export function parseDuration(text: string): number | undefined {
  if (text.length > 32 || !/^(\d{1,9}(ms|s|m|h|d))+$/.test(text)) return undefined;
  let total = 0;
  for (const [, number, unit] of text.matchAll(/(\d{1,9})(ms|s|m|h|d)/g)) {
    total += Number(number) * (unitsMs[unit ?? ""] ?? 0);
  }
  return total <= 10 * 366 * 86_400_000 ? total : undefined;
}

/** A duration in milliseconds in the form that `parseDuration` reads: `36h`, `1m30s`. */
export function formatDuration(ms: number): string {
  let rest = Math.max(0, Math.round(ms));
  if (rest === 0) return "0s";
  let text = "";
  for (const unit of ["d", "h", "m", "s", "ms"]) {
    const size = unitsMs[unit] ?? 1;
    const count = Math.floor(rest / size);
    if (count === 0) continue;
    text += `${count}${unit}`;
    rest -= count * size;
  }
  return text;
}

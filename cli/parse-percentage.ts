import { usageError } from "./command-error.ts";

const pattern = /^(\d{1,3})(?:\.(\d{1,3})0*)?\s?%?$/;

/**
 * Reads a percentage as people write it (`10`, `12.5`, `33.333`, `100%`) and returns thousandths of a percent, exactly:
 * no floating point is involved. From 0 to 100, at most three decimals that count.
 *
 * Throws a usage error for anything else, a percentage finer than a thousandth included.
 */
export function parsePercentage(text: string): number {
  const match = pattern.exec(text.trim());
  if (match === null) {
    throw usageError(
      `"${clip(text)}" is not a percentage`,
      "Give a number from 0 to 100 with up to three decimals, such as 10 or 12.5.",
    );
  }
  const thousandths = Number(match[1]) * 1000 + Number((match[2] ?? "").padEnd(3, "0"));
  if (thousandths > 100_000) throw usageError(`${clip(text)} is more than 100 percent`);
  return thousandths;
}

/** Writes thousandths of a percent as people read them: `12500` is `12.5 %`. */
export function formatPercentage(thousandths: number): string {
  const whole = Math.trunc(thousandths / 1000);
  const fraction = String(thousandths % 1000)
    .padStart(3, "0")
    .replace(/0+$/, "");
  return fraction === "" ? `${whole} %` : `${whole}.${fraction} %`;
}

function clip(text: string): string {
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}

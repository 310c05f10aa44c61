import type { DescEnum } from "@bufbuild/protobuf";
import { usageError } from "./command-error.ts";

/**
 * The words by which people name the values of a contract enum: `STATE_ROLLED_BACK` is `rolled-back`. The unspecified
 * value has none.
 */
export function choicesOf(desc: DescEnum): Map<string, number> {
  const prefix = desc.sharedPrefix ?? "";
  const words = new Map<string, number>();
  for (const value of desc.values) {
    if (value.number === 0) continue;
    words.set(wordOf(value.name, prefix), value.number);
  }
  return words;
}

/** Reads one of the words of a contract enum, or throws a usage error that lists them. `what` names the thing chosen. */
export function parseChoice(desc: DescEnum, what: string, text: string): number {
  const words = choicesOf(desc);
  const value = words.get(text.trim().toLowerCase().replaceAll("_", "-"));
  if (value === undefined) {
    throw usageError(`"${text.slice(0, 40)}" is not a ${what}`, `Choose one of ${[...words.keys()].join(", ")}.`);
  }
  return value;
}

/** The word for a value of a contract enum; `-` for the unspecified one, `unknown(n)` for one newer than this program. */
export function choiceWord(desc: DescEnum, value: number): string {
  if (value === 0) return "-";
  const known = desc.values.find((candidate) => candidate.number === value);
  return known === undefined ? `unknown(${value})` : wordOf(known.name, desc.sharedPrefix ?? "");
}

function wordOf(name: string, prefix: string): string {
  const bare = name.toUpperCase().startsWith(prefix.toUpperCase()) ? name.slice(prefix.length) : name;
  return bare.toLowerCase().replaceAll("_", "-");
}

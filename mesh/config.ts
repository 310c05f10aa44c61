import { accessSync, constants, readFileSync, statSync } from "node:fs";
import { type CidrList, parseCidrList } from "./cidr.ts";
import { parseDuration } from "./duration.ts";

/** A start-up error that names each variable that is wrong, what was found, and what is expected. */
export class ConfigError extends Error {
  /** One line for each problem. */
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(`the configuration cannot be used:\n${problems.map((problem) => `  ${problem}`).join("\n")}`);
    this.name = "ConfigError";
    this.problems = problems;
  }
}

/** The environment's variables. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** Reads one variable: a value, or a problem in words that follow the variable's name as they are. */
export type Reader<T> = (name: string, environment: Environment) => { value: T } | { problem: string };

/** What a set of readers reads. */
export type Configuration<S extends Record<string, Reader<unknown>>> = {
  [K in keyof S]: S[K] extends Reader<infer T> ? T : never;
};

/** Reads variables by their names. Throws one ConfigError that lists every problem. */
export function readEnvironment<S extends Record<string, Reader<unknown>>>(
  environment: Environment,
  spec: S,
): Configuration<S> {
  const problems: string[] = [];
  const values: Record<string, unknown> = {};
  for (const [name, reader] of Object.entries(spec)) {
    const result = reader(name, environment);
    if ("problem" in result) problems.push(`${name}${result.problem}`);
    else values[name] = result.value;
  }
  if (problems.length > 0) throw new ConfigError(problems);
  return values as Configuration<S>;
}

/** Text as it stands. */
export function text(fallback?: string): Reader<string> {
  return parsed("text", fallback, (value) => value);
}

/** Text that may be absent. */
export function optionalText(): Reader<string | undefined> {
  return (name, environment) => ({ value: environment[name] || undefined });
}

/** A whole number within bounds. */
export function integer(min: number, max: number, fallback?: number): Reader<number> {
  return parsed(`a whole number from ${min} to ${max}`, fallback, (value) => {
    const number = Number(value);
    return /^-?\d+$/.test(value) && number >= min && number <= max ? number : undefined;
  });
}

/** A port, 0 to 65535; 0 lets the system choose. */
export function port(fallback?: number): Reader<number> {
  return integer(0, 65_535, fallback);
}

/** `true`, `false`, `1`, `0`, `yes`, `no`. */
export function boolean(fallback: boolean): Reader<boolean> {
  return parsed("true or false", fallback, (value) => {
    if (/^(true|1|yes|on)$/i.test(value)) return true;
    return /^(false|0|no|off)$/i.test(value) ? false : undefined;
  });
}

/** A duration such as `48h`, in milliseconds. */
export function duration(fallbackMs: number, minMs = 0, maxMs = Number.MAX_SAFE_INTEGER): Reader<number> {
  return parsed("a duration such as 30s, 15m or 48h", fallbackMs, (value) => {
    const ms = parseDuration(value);
    return ms !== undefined && ms >= minMs && ms <= maxMs ? ms : undefined;
  });
}

/** An absolute URL of one of the given protocols, without a slash at the end. */
export function url(protocols: readonly string[], fallback?: string): Reader<string> {
  return parsed(`a URL that begins with ${protocols.map((p) => `${p}//`).join(" or ")}`, fallback, (value) => {
    if (!URL.canParse(value) || !protocols.includes(new URL(value).protocol)) return undefined;
    return value.replace(/\/+$/, "");
  });
}

/** A list of CIDR blocks, separated by commas; empty if not given. */
export function cidrList(): Reader<CidrList> {
  return parsed("addresses or CIDR blocks, separated by commas", parseCidrList(""), parseCidrList);
}

/** A list of words, separated by commas; empty if not given. */
export function list(): Reader<readonly string[]> {
  return (name, environment) => ({
    value: (environment[name] ?? "")
      .split(",")
      .map((each) => each.trim())
      .filter((each) => each !== ""),
  });
}

/** One of the given words, as they are written. */
export function oneOf<const T extends string>(words: readonly T[], fallback?: T): Reader<T> {
  return parsed(`one of ${words.join(", ")}`, fallback, (value) => words.find((word) => word === value));
}

/** The path of a file that can be read, undefined if not given. */
export function optionalFile(): Reader<string | undefined> {
  return (name, environment) => {
    const file = environment[name];
    if (!file) return { value: undefined };
    try {
      if (!statSync(file).isFile()) return { problem: ` is ${JSON.stringify(file)}: a file is expected` };
      accessSync(file, constants.R_OK);
      return { value: file };
    } catch (error) {
      return { problem: ` is ${JSON.stringify(file)}: a file that can be read is expected (${codeOf(error)})` };
    }
  };
}

/**
 * A secret from the variable, or from the file that `<NAME>_FILE` names (its end-of-line left out). Undefined if neither
 * is given. Problems never show the value.
 */
export function secret(): Reader<string | undefined> {
  return (name, environment) => {
    const value = environment[name];
    const file = environment[`${name}_FILE`];
    if (value && file) return { problem: ` and ${name}_FILE are both set: one of them is expected` };
    if (value) return { value };
    if (!file) return { value: undefined };
    try {
      if (statSync(file).size > 65_536) return { problem: `_FILE: ${file} is larger than a secret can be` };
      const content = readFileSync(file, "utf8").replace(/\r?\n$/, "");
      return content === "" ? { problem: `_FILE: ${file} is empty` } : { value: content };
    } catch (error) {
      return { problem: `_FILE: ${file} cannot be read (${codeOf(error)})` };
    }
  };
}

function parsed<T>(expected: string, fallback: T | undefined, parse: (value: string) => T | undefined): Reader<T> {
  return (name, environment) => {
    const value = environment[name];
    if (value === undefined || value === "") {
      return fallback === undefined ? { problem: ` is not set: ${expected} is expected` } : { value: fallback };
    }
    const result = parse(value);
    if (result === undefined) return { problem: ` is ${shown(value)}: ${expected} is expected` };
    return { value: result };
  };
}

/** A value as an error may show it: short, and without the password of a URL. */
function shown(value: string): string {
  return JSON.stringify(value.replace(/\/\/[^/\s]*@/g, "//[redacted]@").slice(0, 80));
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "error";
}

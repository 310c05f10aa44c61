import { Command, Option } from "commander";
import { usageError } from "./command-error.ts";
import type { Connection } from "./connection.ts";
import type { Output } from "./output.ts";
import type { ProfileStore } from "./profile-store.ts";
import type { Terminal } from "./terminal.ts";

/** What a command works with. */
export interface CommandContext {
  terminal: Terminal;
  output: Output;
  store: ProfileStore;
  /** The profile that the person named; undefined for the current one. */
  profileName: string | undefined;
  /** The mesh that the person named by `--url` or `OCTOMIL_URL`; undefined for the profile's. */
  url: string | undefined;
  /** The whole program that the command is part of. */
  program: Command;
  /** Connects with the person's credential. Throws a CommandError (exit code 3) where there is none. */
  connect(): Promise<Connection>;
  /** Connects to the mesh without any credential, for the calls that give one. */
  connectPublic(): Promise<Connection>;
}

/** What the person typed. */
export interface CommandInput {
  /** Positional arguments, in order. */
  args: readonly string[];
  /** The rest of a variadic argument. */
  rest: readonly string[];
  /** The text of an option; undefined if it was not given. */
  text(name: string): string | undefined;
  /** The text of an option that must be given; throws a usage error. */
  required(name: string): string;
  /** The texts of an option that may be repeated. */
  texts(name: string): readonly string[];
  /** Whether a flag was given. */
  flag(name: string): boolean;
  /** A whole number within bounds; `fallback` if it was not given. Throws a usage error. */
  integer(name: string, bounds: { min: number; max: number; fallback: number }): number;
}

/** Says what a command is. */
export interface CommandSpec {
  /** Its word. */
  name: string;
  /** Its positional arguments with their meanings, such as `["<id>", "id of the device"]`. */
  args?: readonly (readonly [name: string, meaning: string])[];
  /** One sentence for the list of commands. */
  summary: string;
  /** What else there is to know. */
  details?: string;
  /** Its options with their meanings, such as `["--name <name>", "name for people"]`; `...` after the value repeats. */
  options?: readonly (readonly [flags: string, meaning: string])[];
  /** Command lines that work, without the word `octomil`. At least one. */
  examples: readonly string[];
  run(context: CommandContext, input: CommandInput): Promise<void>;
}

/** Runs a command with what the person typed: given by the program, so that commands stay plain functions. */
export type Runner = (spec: CommandSpec, command: Command, args: readonly unknown[]) => Promise<void>;

/** Adds a word that only groups others, such as `api-keys`. */
export function addGroup(parent: Command, name: string, summary: string, aliases: readonly string[] = []): Command {
  const group = new Command(name).description(summary).helpCommand(false);
  for (const alias of aliases) group.alias(alias);
  inherit(parent, group);
  parent.addCommand(group);
  return group;
}

/** Adds commands to a program or group. */
export function addCommands(parent: Command, runner: Runner, specs: readonly CommandSpec[]): void {
  for (const spec of specs) {
    const command = new Command(spec.name).summary(spec.summary);
    command.description(spec.details === undefined ? spec.summary : `${spec.summary}\n\n${spec.details}`);
    inherit(parent, command);
    for (const [name, meaning] of spec.args ?? []) command.argument(name, meaning);
    for (const [flags, meaning] of spec.options ?? []) command.addOption(toOption(flags, meaning));
    command.addHelpText("after", `\nExamples:\n${spec.examples.map((example) => `  $ octomil ${example}`).join("\n")}`);
    command.action((...args: unknown[]) => runner(spec, command, args));
    parent.addCommand(command);
  }
}

/** Reads what commander parsed into what commands use. */
export function toInput(command: Command, args: readonly unknown[]): CommandInput {
  const positional = args.slice(0, command.registeredArguments.length);
  const values: Record<string, unknown> = command.opts();
  const nameOf = (name: string) => name.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
  const text = (name: string) => {
    const value = values[nameOf(name)];
    return typeof value === "string" ? value : undefined;
  };
  return {
    args: positional.filter((value): value is string => typeof value === "string"),
    rest: positional.flatMap((value) => (Array.isArray(value) ? value.map(String) : [])),
    text,
    required(name) {
      const value = text(name);
      if (value === undefined || value === "")
        throw usageError(`--${name} is missing`, `See octomil ${pathOf(command)} --help.`);
      return value;
    },
    texts(name) {
      const value = values[nameOf(name)];
      return Array.isArray(value) ? value.map(String) : [];
    },
    flag: (name) => values[nameOf(name)] === true,
    integer(name, { min, max, fallback }) {
      const value = text(name);
      if (value === undefined) return fallback;
      const number = /^\d{1,15}$/.test(value) ? Number(value) : Number.NaN;
      if (!(number >= min && number <= max)) {
        throw usageError(`--${name} takes a whole number from ${min} to ${max}, not "${value.slice(0, 40)}"`);
      }
      return number;
    },
  };
}

/** The words that lead to a command: `org members add`. */
export function pathOf(command: Command): string {
  const words: string[] = [];
  for (let current: Command | null = command; current?.parent != null; current = current.parent) {
    words.unshift(current.name());
  }
  return words.join(" ");
}

function toOption(flags: string, meaning: string): Option {
  const option = new Option(flags.replace(/\.\.\.$/, ""), meaning);
  if (flags.endsWith("...")) {
    option.argParser((value: string, previous: string[] | undefined) => [...(previous ?? []), value]);
  }
  return option;
}

function inherit(parent: Command, child: Command): void {
  child.copyInheritedSettings(parent);
  child.configureHelp({ showGlobalOptions: true, sortSubcommands: false, styleTitle: (title) => title });
}

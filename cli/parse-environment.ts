import { Environment, EnvironmentSchema } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import type { CommandInput } from "./command.ts";
import { usageError } from "./command-error.ts";
import { parseChoice } from "./parse-choice.ts";

/** The options by which people choose between the organisation and its sandbox. */
export const environmentOptions: readonly (readonly [flags: string, meaning: string])[] = [
  ["--env <env>", "live, or test for the sandbox; that of your own credential if left out"],
  ["--test", "short for --env test"],
];

/**
 * Reads `--env` and `--test`; UNSPECIFIED, which lets the mesh take the caller's, if neither is given. Throws a usage
 * error for another word, and for options that contradict each other.
 */
export function parseEnvironment(input: Pick<CommandInput, "text" | "flag">): Environment {
  const text = input.text("env");
  const environment: Environment =
    text === undefined ? Environment.UNSPECIFIED : parseChoice(EnvironmentSchema, "--env", text);
  if (!input.flag("test")) return environment;
  if (environment === Environment.LIVE) throw usageError("--env live and --test exclude each other");
  return Environment.TEST;
}

import { type ExitCode, exitCode } from "./exit-code.ts";

/** A failure that the command line itself found: its message is for a person and needs no translation. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  /** What `octomil` exits with. */
  readonly code: ExitCode;
  /** What the person can do about it, in one sentence; empty if there is nothing to say. */
  readonly hint: string;

  constructor(message: string, options: { code?: ExitCode; hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = options.code ?? exitCode.failed;
    this.hint = options.hint ?? "";
  }
}

/** Makes the error of a command line that cannot be understood or that contradicts itself: exit code 2. */
export function usageError(message: string, hint = ""): CommandError {
  return new CommandError(message, { code: exitCode.usage, hint });
}

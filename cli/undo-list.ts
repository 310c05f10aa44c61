import { describeError } from "./describe-error.ts";
import type { Output } from "./output.ts";

/** What a command of several steps has done so far, to be taken back if a later step fails. */
export interface UndoList {
  /**
   * Notes a step that was done.
   *
   * @param command the command line that takes it back, for a person where taking it back fails too
   */
  did(command: string, takeBack: () => Promise<unknown>): void;
  /** Takes back all steps, the last one first. Never fails: what stays behind is told on standard error. */
  undo(): Promise<void>;
}

/** Makes an empty list. */
export function createUndoList(output: Pick<Output, "warn">): UndoList {
  const steps: { command: string; takeBack: () => Promise<unknown> }[] = [];
  return {
    did: (command, takeBack) => void steps.push({ command, takeBack }),
    async undo() {
      for (const { command, takeBack } of steps.splice(0).reverse()) {
        await takeBack().catch((error: unknown) => {
          output.warn(
            `What was made could not be taken back (${describeError(error).message}): run octomil ${command}.`,
          );
        });
      }
    },
  };
}

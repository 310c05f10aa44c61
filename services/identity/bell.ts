/** Wakes one loop before its time. */
export interface Bell {
  /** Ends the pause that is under way, or else the next one. */
  ring(): void;
  /** Waits so many milliseconds, until it rings or until the signal aborts, whichever is first. */
  pause(ms: number, signal: AbortSignal): Promise<void>;
}

/** Makes a bell. It remembers one ring while nobody waits. */
export function createBell(): Bell {
  let rung = false;
  let wake: (() => void) | undefined;
  return {
    ring() {
      rung = true;
      wake?.();
    },
    async pause(ms, signal) {
      if (!rung && !signal.aborted) {
        await new Promise<void>((resolve) => {
          const done = (): void => {
            clearTimeout(timer);
            signal.removeEventListener("abort", done);
            wake = undefined;
            resolve();
          };
          const timer = setTimeout(done, ms);
          signal.addEventListener("abort", done);
          wake = done;
        });
      }
      rung = false;
    },
  };
}

import { setMaxListeners } from "node:events";
import type { Logger } from "pino";

/** Ends what a process opened, in the reverse order of its opening. */
export interface Shutdown {
  /** Adds something to end. What was added last ends first. */
  add(name: string, close: () => Promise<void> | void): void;
  /** Ends everything, once; resolves when all is done. */
  run(reason: string): Promise<void>;
  /** Aborts as the shutdown begins. */
  readonly signal: AbortSignal;
}

/** Opens a shutdown. One part that fails or hangs longer than `partTimeoutMs` does not keep the others. */
export function createShutdown(log: Logger, partTimeoutMs = 20_000): Shutdown {
  const parts: { name: string; close: () => Promise<void> | void }[] = [];
  const controller = new AbortController();
  // Every call under way listens for the shutdown.
  setMaxListeners(0, controller.signal);
  let running: Promise<void> | undefined;
  return {
    signal: controller.signal,
    add(name, close) {
      parts.push({ name, close });
    },
    run(reason) {
      running ??= (async () => {
        log.debug({ reason }, "shutting down");
        controller.abort();
        for (const { name, close } of parts.reverse()) {
          let timer: NodeJS.Timeout | undefined;
          const late = new Promise<never>((_, reject) => {
            timer = setTimeout(() => reject(new Error(`${name} did not end in time`)), partTimeoutMs);
          });
          try {
            await Promise.race([Promise.resolve(close()), late]);
          } catch (error) {
            log.error({ err: error, part: name }, "part failed to end");
          } finally {
            clearTimeout(timer);
          }
        }
      })();
      return running;
    },
  };
}

/**
 * Ends the process by signal: SIGINT and SIGTERM shut down in order and exit 0, a second one exits at once with 130. An
 * exception that nobody caught is logged, and the process shuts down with 1.
 */
export function handleSignals(shutdown: Shutdown, log: Logger): void {
  let asked = false;
  const end = (reason: string, code: number): void => {
    if (asked) process.exit(130);
    asked = true;
    shutdown.run(reason).then(
      () => process.exit(code),
      () => process.exit(1),
    );
  };
  process.on("SIGINT", () => end("SIGINT", 0));
  process.on("SIGTERM", () => end("SIGTERM", 0));
  process.on("uncaughtException", (error) => {
    log.fatal({ err: error }, "uncaught exception");
    end("uncaughtException", 1);
  });
  process.on("unhandledRejection", (error) => {
    log.fatal({ err: error }, "unhandled rejection");
    end("unhandledRejection", 1);
  });
}

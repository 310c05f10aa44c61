import { setMaxListeners } from "node:events";
import type { Logger } from "pino";

/** Ends what a process opened, in the reverse order of its opening. */
export interface Shutdown {
  /** Adds something to end. What was added last ends first. It may take `timeoutMs`, the shutdown's own by default. */
  add(name: string, close: () => Promise<void> | void, timeoutMs?: number): void;
  /** Ends everything, once; resolves when all is done. */
  run(reason: string): Promise<void>;
  /** Aborts as the shutdown begins. */
  readonly signal: AbortSignal;
}

/** Opens a shutdown. One part that fails or hangs longer than `partTimeoutMs` does not keep the others. */
export function createShutdown(log: Logger, partTimeoutMs = 20_000): Shutdown {
  const parts: Part[] = [];
  const controller = new AbortController();
  // Every call under way listens for the shutdown.
  setMaxListeners(0, controller.signal);
  let running: Promise<void> | undefined;
  let isOver = false;

  const end = async ({ name, close, timeoutMs }: Part): Promise<void> => {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`${name} did not end in time`)), timeoutMs);
    });
    try {
      await Promise.race([Promise.resolve(close()), late]);
    } catch (error) {
      log.error({ err: error, part: name }, "part failed to end");
    } finally {
      clearTimeout(timer);
    }
  };

  return {
    signal: controller.signal,
    add(name, close, timeoutMs = partTimeoutMs) {
      parts.push({ name, close, timeoutMs });
      // What a start that was overtaken by the shutdown still opened.
      if (isOver) for (const part of parts.splice(0)) void end(part);
    },
    run(reason) {
      running ??= (async () => {
        log.debug({ reason }, "shutting down");
        controller.abort();
        for (let part = parts.pop(); part !== undefined; part = parts.pop()) await end(part);
        isOver = true;
      })();
      return running;
    },
  };
}

interface Part {
  readonly name: string;
  readonly close: () => Promise<void> | void;
  readonly timeoutMs: number;
}

/**
 * Ends the process by signal: SIGINT and SIGTERM shut down in order and exit 0; a second SIGINT exits at once with 130.
 * An exception that nobody caught is logged, and the process shuts down and exits 1, as it does whatever asked first.
 * A process that was started with a channel to its parent also ends, with 0, when that closes: the parent has gone.
 */
export function handleSignals(shutdown: Shutdown, log: Logger): void {
  let exitCode: number | undefined;
  const end = (reason: string, code: number): void => {
    const isFirst = exitCode === undefined;
    exitCode = Math.max(exitCode ?? 0, code);
    if (!isFirst) return;
    shutdown.run(reason).then(
      () => process.exit(exitCode),
      () => process.exit(1),
    );
  };
  process.on("SIGINT", () => {
    if (exitCode !== undefined) process.exit(130);
    end("SIGINT", 0);
  });
  // Supervisors send it to the whole group, wrappers pass it on: a second one is the first again, not impatience.
  process.on("SIGTERM", () => end("SIGTERM", 0));
  process.on("disconnect", () => end("the parent has gone", 0));
  process.on("uncaughtException", (error) => {
    log.fatal({ err: error }, "uncaught exception");
    end("uncaughtException", 1);
  });
  process.on("unhandledRejection", (error) => {
    log.fatal({ err: error }, "unhandled rejection");
    end("unhandledRejection", 1);
  });
}

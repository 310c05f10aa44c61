import { createInterface } from "node:readline";
import { Writable } from "node:stream";
import { usageError } from "./command-error.ts";

/** What a command sees of the world it runs in; a test hands it another. */
export interface Terminal {
  /** Environment variables. */
  env: Readonly<Record<string, string | undefined>>;
  /** Writes to standard output, as it is. */
  out(text: string): void;
  /** Writes to standard error, as it is. */
  err(text: string): void;
  /** Whether standard output is a person's screen. */
  outIsTty: boolean;
  /** Whether standard error is a person's screen. */
  errIsTty: boolean;
  /** Whether a person can be asked. */
  canAsk: boolean;
  /** Width of the screen in characters. */
  columns: number;
  /** Asks a question on standard error and returns the answer's line; `hidden` does not show what is typed. */
  ask(question: string, options?: { hidden?: boolean }): Promise<string>;
  /** Reads standard input to its end, up to `maxBytes`. */
  readInput(maxBytes?: number): Promise<string>;
  /** Milliseconds since the Unix epoch. */
  now(): number;
  /** Aborts when the person presses Ctrl-C, or the system asks the program to end. */
  signal: AbortSignal;
}

/** The terminal of this process. Ctrl-C aborts its signal first; a second one ends the process at once. */
export function processTerminal(): Terminal {
  const controller = new AbortController();
  const interrupt = () => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort(new Error("interrupted"));
  };
  process.on("SIGINT", interrupt);
  process.on("SIGTERM", interrupt);
  // A reader that goes away (`octomil devices list | head`) ends the program quietly.
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EPIPE") process.exit(0);
    });
  }
  return {
    env: process.env,
    out: (text) => void process.stdout.write(text),
    err: (text) => void process.stderr.write(text),
    outIsTty: process.stdout.isTTY === true,
    errIsTty: process.stderr.isTTY === true,
    canAsk: process.stdin.isTTY === true && process.stderr.isTTY === true,
    columns: process.stdout.columns ?? 100,
    ask,
    readInput,
    now: () => Date.now(),
    signal: controller.signal,
  };
}

async function ask(question: string, options: { hidden?: boolean } = {}): Promise<string> {
  const muted = new Writable({ write: (_chunk, _encoding, done) => done() });
  process.stderr.write(question);
  const reader = createInterface({
    input: process.stdin,
    output: options.hidden === true ? muted : process.stderr,
    terminal: true,
  });
  try {
    return await new Promise<string>((resolve, reject) => {
      reader.once("line", resolve);
      reader.once("SIGINT", () => reject(new Error("interrupted")));
      reader.once("close", () => reject(usageError("no answer was given")));
    });
  } finally {
    reader.close();
    if (options.hidden === true) process.stderr.write("\n");
  }
}

async function readInput(maxBytes = 65_536): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of process.stdin) {
    const bytes = Buffer.from(chunk as Buffer);
    size += bytes.length;
    if (size > maxBytes) throw usageError(`standard input holds more than ${maxBytes} bytes`);
    chunks.push(bytes);
  }
  return Buffer.concat(chunks).toString("utf8");
}

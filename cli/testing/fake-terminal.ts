import type { Terminal } from "../terminal.ts";

/** A terminal that remembers what was written to it. */
export interface FakeTerminal extends Terminal {
  stdout(): string;
  stderr(): string;
}

/** Settings of a terminal for tests. */
export interface FakeTerminalOptions {
  env?: Record<string, string>;
  outIsTty?: boolean;
  /** What is on standard input. */
  input?: string;
  /** Answers to questions, in order; without them nobody can be asked. */
  answers?: string[];
  /** Aborted where the person presses Ctrl-C. */
  signal?: AbortSignal;
}

/** Makes a terminal for tests: 100 columns, a fixed time, no screen unless asked for. */
export function fakeTerminal(options: FakeTerminalOptions = {}): FakeTerminal {
  const out: string[] = [];
  const err: string[] = [];
  const answers = [...(options.answers ?? [])];
  return {
    env: options.env ?? {},
    out: (text) => void out.push(text),
    err: (text) => void err.push(text),
    outIsTty: options.outIsTty ?? false,
    errIsTty: false,
    canAsk: options.answers !== undefined,
    columns: 100,
    async ask(question) {
      err.push(question);
      return answers.shift() ?? "";
    },
    readInput: async () => options.input ?? "",
    now: () => Date.UTC(2026, 1, 3, 4, 5, 6),
    signal: options.signal ?? new AbortController().signal,
    stdout: () => out.join(""),
    stderr: () => err.join(""),
  };
}

import cliProgress from "cli-progress";
import { createPaint, wantsColor } from "./paint.ts";
import type { Terminal } from "./terminal.ts";

/** A bar that fills as work is done. */
export interface Progress {
  /** Says how much is done; never less than before, as a rule. */
  set(done: number): void;
  /** Takes the bar away, or leaves it full. */
  end(): void;
}

/** What a bar shows. */
export interface ProgressOptions {
  /** What is being done, such as `uploading`. */
  label: string;
  /** When it is done. */
  total: number;
  /** Writes an amount for people; the plain number if not given. */
  format?(amount: number): string;
  /** Draws nothing. */
  hidden?: boolean;
}

/** Opens a progress bar on standard error. Where that is no screen, or the bar is hidden, it draws nothing. */
export function openProgress(terminal: Terminal, options: ProgressOptions): Progress {
  if (options.hidden === true || !terminal.errIsTty || options.total <= 0) {
    return { set: () => {}, end: () => {} };
  }
  const paint = createPaint(wantsColor(terminal.env, terminal.errIsTty));
  const format = options.format ?? String;
  const bar = new cliProgress.SingleBar({
    format: `${options.label} ${paint.cyan("{bar}")} {percentage} % · {done} of {all} · {eta_formatted}`,
    barCompleteChar: "█",
    barIncompleteChar: "░",
    barsize: Math.max(10, Math.min(40, terminal.columns - options.label.length - 45)),
    hideCursor: true,
    fps: 12,
    stream: process.stderr,
    gracefulExit: true,
  });
  bar.start(options.total, 0, { done: format(0), all: format(options.total) });
  return {
    set: (done) => bar.update(Math.min(done, options.total), { done: format(Math.min(done, options.total)) }),
    end: () => bar.stop(),
  };
}

import { createPaint, type Paint, wantsColor } from "@octomesh/cli/paint";
import { openProgress, type Progress, type ProgressOptions } from "@octomesh/cli/progress";
import type { Terminal } from "@octomesh/cli/terminal";

/** Tells a story on a terminal as it goes. */
export interface Narrator {
  readonly paint: Paint;
  /** Begins a chapter. */
  chapter(number: number, title: string): void;
  /** Says a sentence. */
  say(text: string): void;
  /** Shows a command line that is being run. */
  command(line: string): void;
  /** Shows what a command printed, indented, secrets shortened. */
  output(text: string): void;
  /** Shows that something is as it should be, or is not. */
  verdict(ok: boolean, text: string): void;
  /** Prints text as it is. */
  print(text: string): void;
  /** Fills a bar while the story waits. Where there is no screen it says what it waits for. */
  bar(options: ProgressOptions): Progress;
}

/** Opens a narrator that prints nothing, for tests. */
export function silentNarrator(): Narrator {
  const nothing = () => {};
  return {
    paint: createPaint(false),
    chapter: nothing,
    say: nothing,
    command: nothing,
    output: nothing,
    verdict: nothing,
    print: nothing,
    bar: () => ({ set: nothing, end: nothing }),
  };
}

/** Opens a narrator on a terminal. */
export function openNarrator(terminal: Terminal): Narrator {
  const paint = createPaint(wantsColor(terminal.env, terminal.outIsTty));
  const line = (text: string) => terminal.out(`${text}\n`);
  return {
    paint,
    chapter: (number, title) => line(`\n${paint.bold(`${number}. ${title}`)}\n`),
    say: (text) => line(`   ${text}`),
    command: (text) => line(`   ${paint.cyan(`$ ${withoutSecrets(text)}`)}`),
    output(text) {
      for (const row of withoutSecrets(text).trimEnd().split("\n"))
        if (row.trim() !== "") line(paint.dim(`     ${row}`));
    },
    verdict: (ok, text) => line(`   ${ok ? paint.green("✓") : paint.red("✗")} ${ok ? text : paint.red(text)}`),
    print: line,
    bar(options) {
      if (!terminal.errIsTty) line(`   … ${options.label}`);
      return openProgress(terminal, { ...options, label: `   ${options.label}` });
    },
  };
}

/** Shortens every credential in a text to what tells it apart. */
export function withoutSecrets(text: string): string {
  return text.replace(/\b(edg_[a-z]+_[0-9A-Za-z]{4})[0-9A-Za-z]{8,}/g, "$1…");
}

const codes = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
  yellow: [33, 39],
  cyan: [36, 39],
} as const;

/** Colours text for a screen, or leaves it as it is. */
export type Paint = Readonly<Record<keyof typeof codes, (text: string) => string>>;

/** Makes the colours of one stream; `on` false makes every colour the identity. */
export function createPaint(on: boolean): Paint {
  const painted = Object.entries(codes).map(([name, [open, close]]) => [
    name,
    (text: string) => (on ? `\u001b[${open}m${text}\u001b[${close}m` : text),
  ]);
  return Object.fromEntries(painted) as Paint;
}

/**
 * Says whether a stream gets colours: a screen does, unless `NO_COLOR` is set to anything (no-color.org) or the terminal
 * is `dumb`; `FORCE_COLOR` other than `0` gives them to anything.
 */
export function wantsColor(env: Readonly<Record<string, string | undefined>>, isTty: boolean, off = false): boolean {
  if (off || (env.NO_COLOR !== undefined && env.NO_COLOR !== "")) return false;
  if (env.FORCE_COLOR !== undefined && env.FORCE_COLOR !== "" && env.FORCE_COLOR !== "0") return true;
  return isTty && env.TERM !== "dumb";
}

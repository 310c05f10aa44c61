/** A failure whose usual hint would mislead where it happened: it is told as its cause, with this hint in its place. */
export class HintedError extends Error {
  override readonly name = "HintedError";
  /** What the person can do about it, in one sentence. */
  readonly hint: string;

  constructor(cause: unknown, hint: string) {
    super(cause instanceof Error ? cause.message : String(cause), { cause });
    this.hint = hint;
  }
}

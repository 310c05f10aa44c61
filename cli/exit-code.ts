/**
 * What `octomil` tells the program that called it. The numbers are a promise: scripts branch on them, so they are
 * never given another meaning.
 */
export const exitCode = {
  /** The command did what it was asked to do. */
  ok: 0,
  /** The mesh refused the command, or it failed; standard error says why. */
  failed: 1,
  /** The command line, the configuration or a file named in it is not right; nothing was sent. */
  usage: 2,
  /** There is no credential, or it is not accepted any more: sign in again. */
  unauthenticated: 3,
  /** What the command names does not exist, or belongs to another organisation. */
  notFound: 4,
  /** The mesh cannot be reached or did not answer in time; trying again makes sense. */
  unavailable: 5,
  /** Too many calls; standard error says when to try again. */
  rateLimited: 6,
  /** Stopped by Ctrl-C. */
  interrupted: 130,
} as const;

/** One of the exit codes of `octomil`. */
export type ExitCode = (typeof exitCode)[keyof typeof exitCode];

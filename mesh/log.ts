import { type DestinationStream, type Logger, pino } from "pino";

/** How a log is written. */
export interface LoggerOptions {
  readonly service: string;
  /** Least level that is written; `info` by default. */
  readonly level?: string;
  /** One short line each for people, instead of JSON. */
  readonly pretty?: boolean;
  readonly destination?: DestinationStream;
}

/**
 * Tokens by their form. What may repeat without end begins only where a word begins, so that the work is linear; in JSON
 * a word may also begin behind the letter of an escaped line break.
 */
const secretToken =
  /edg_[a-z]{1,16}_[0-9A-Za-z]{8,}|octet_(?:live|test)_[\w.-]{8,}|(?:(?<![\w-])|(?<=\\[bfnrt]))eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?/g;
const secretScheme = /\b(bearer|basic|dpop) {1,8}[\w.~+/=-]{8,}/gi;
const secretUrl = /:\/\/[^@\s/"\\]+@/g;

/** Fields that are not written, wherever they stand in the first two levels of what is logged. */
const secretFields = [
  "authorization",
  "proxy-authorization",
  "cookie",
  "set-cookie",
  "x-api-key",
  "octomesh-delegate",
  "dpop",
  "password",
  "secret",
  "token",
  "refresh_token",
  "private_key",
];

/** Opens a log in which no token, password in a URL, or secret header appears, wherever it stands. */
export function createLogger(options: LoggerOptions): Logger {
  const target = options.destination ?? (options.pretty === true ? process.stdout : undefined);
  const destination = options.pretty === true && target !== undefined ? prettyDestination(target) : target;
  return pino(
    {
      level: options.level ?? "info",
      base: { service: options.service },
      redact: { paths: secretFields.flatMap(pathsOf), censor: "[redacted]" },
      serializers: { err: describeError },
      hooks: { streamWrite: redactText },
    },
    destination ?? pino.destination({ dest: 1, sync: false }),
  );
}

function pathsOf(field: string): string[] {
  return [`["${field}"]`, `*["${field}"]`, `*.headers["${field}"]`];
}

/** Replaces whatever looks like a credential. */
export function redactText(text: string): string {
  return text
    .replace(secretToken, "[redacted]")
    .replace(secretScheme, "$1 [redacted]")
    .replace(secretUrl, "://[redacted]@");
}

const levels: Readonly<Record<number, string>> = {
  10: "trace",
  20: "debug",
  30: "info",
  40: "warn",
  50: "error",
  60: "fatal",
};

function prettyDestination(target: DestinationStream): DestinationStream {
  return { write: (line) => target.write(`${formatLine(line)}\n`) };
}

/** Text that needs no quotes to be told from what is around it. */
const plain = /^[\w.:/@+-]+$/;
/** What would move the cursor or change the terminal, left out of text for people. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it is about
const controls = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/g;

function formatLine(line: string): string {
  let record: Record<string, unknown>;
  try {
    record = JSON.parse(line);
  } catch {
    return line.trimEnd();
  }
  const { level, time, service, msg, pid: _pid, hostname: _host, err, ...rest } = record;
  const clock = new Date(Number(time)).toISOString().slice(11, 23);
  const facts = Object.entries(rest)
    .map(([key, value]) => `${key}=${typeof value === "string" && plain.test(value) ? value : JSON.stringify(value)}`)
    .join(" ");
  const failure = err !== undefined && err !== null ? ` ${describe(err)}` : "";
  const text = `${clock} ${(levels[Number(level)] ?? "").padEnd(5)} ${String(service).padEnd(15)} ${String(msg ?? "")} ${facts}${failure}`;
  return text.replace(controls, "").trimEnd();
}

function describe(err: unknown): string {
  if (typeof err !== "object" || err === null) return String(err);
  const { message, stack } = err as { message?: unknown; stack?: unknown };
  return String(stack ?? message ?? "");
}

/**
 * What a log may show of an error: its type, text, code, stack and causes. Whatever else it carries stays out, since
 * drivers put rows there: PostgreSQL's `detail` says `Key (email)=(…)`.
 */
export function describeError(error: unknown, depth = 0): unknown {
  if (!(error instanceof Error)) return typeof error === "object" && error !== null ? "[object]" : error;
  const { code, constraint, table, cause } = error as {
    code?: unknown;
    constraint?: unknown;
    table?: unknown;
    cause?: unknown;
  };
  return {
    type: error.constructor.name,
    message: error.message,
    stack: error.stack,
    ...(typeof code === "string" || typeof code === "number" ? { code } : {}),
    ...(typeof constraint === "string" ? { constraint } : {}),
    ...(typeof table === "string" ? { table } : {}),
    ...(cause !== undefined && depth < 4 ? { cause: describeError(cause, depth + 1) } : {}),
  };
}

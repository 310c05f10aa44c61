import { type DestinationStream, type Logger, pino, stdSerializers } from "pino";

/** How a log is written. */
export interface LoggerOptions {
  readonly service: string;
  /** Least level that is written; `info` by default. */
  readonly level?: string;
  /** One short line each for people, instead of JSON. */
  readonly pretty?: boolean;
  readonly destination?: DestinationStream;
}

const secretToken =
  /\bedg_[a-z]{1,16}_[0-9A-Za-z]{8,64}\b|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}\b|\boctet_(?:live|test)_[\w.-]{8,}/g;
const secretUrl = /\b(postgres(?:ql)?|rediss?):\/\/[^@\s/]*@/g;

/** Opens a log in which no token, password in a URL, or secret header appears, wherever it stands. */
export function createLogger(options: LoggerOptions): Logger {
  const destination = options.destination ?? (options.pretty === true ? prettyDestination() : undefined);
  return pino(
    {
      level: options.level ?? "info",
      base: { service: options.service },
      redact: {
        paths: [
          "authorization",
          "cookie",
          "*.authorization",
          "*.cookie",
          "headers['x-api-key']",
          "password",
          "*.password",
        ],
        censor: "[redacted]",
      },
      serializers: { err: stdSerializers.err },
      hooks: { streamWrite: redactText },
    },
    destination ?? pino.destination({ dest: 1, sync: false }),
  );
}

/** Replaces whatever looks like a credential. */
export function redactText(text: string): string {
  return text.replace(secretToken, "[redacted]").replace(secretUrl, "$1://[redacted]@");
}

const levels: Readonly<Record<number, string>> = {
  10: "trace",
  20: "debug",
  30: "info",
  40: "warn",
  50: "error",
  60: "fatal",
};

function prettyDestination(): DestinationStream {
  return {
    write(line: string) {
      process.stdout.write(`${formatLine(line)}\n`);
    },
  };
}

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
    .map(([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(" ");
  const failure = err !== undefined && err !== null ? ` ${describe(err)}` : "";
  return `${clock} ${(levels[Number(level)] ?? "").padEnd(5)} ${String(service).padEnd(15)} ${String(msg ?? "")} ${facts}${failure}`.trimEnd();
}

function describe(err: unknown): string {
  if (typeof err !== "object" || err === null) return String(err);
  const { message, stack } = err as { message?: unknown; stack?: unknown };
  return String(stack ?? message ?? "");
}

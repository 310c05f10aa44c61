import { type DescMessage, getOption, hasOption, type JsonValue, type MessageShape, toJson } from "@bufbuild/protobuf";
import { DataClass, data_class } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import Table from "cli-table3";
import { createPaint, type Paint, wantsColor } from "./paint.ts";
import type { Terminal } from "./terminal.ts";

/** One column of a table: its title, and its text for an item. */
export interface Column<T> {
  title: string;
  value(item: T): string;
  /** Numbers stand right. */
  align?: "right";
}

/** Several resources to print. */
export interface ListOutput<Desc extends DescMessage> {
  schema: Desc;
  /** Name of the array in the JSON document, as in the contract: `api_keys`. */
  key: string;
  items: readonly MessageShape<Desc>[];
  columns: readonly Column<MessageShape<Desc>>[];
  /** What to say to a person where there is nothing. */
  empty: string;
  /** The one value of an item that `--quiet` prints; its id if not given. */
  essential?(item: MessageShape<Desc>): string;
  /** There are more than these. */
  truncated?: boolean;
}

/** One resource to print. */
export interface ShowOutput<Desc extends DescMessage> {
  schema: Desc;
  item: MessageShape<Desc>;
  /** What happened, in one line for a person. */
  headline?: string;
  /** Facts for a person, in order; empty ones are left out. */
  facts: readonly (readonly [label: string, value: string])[];
  /** What `--quiet` prints; its id if not given. */
  essential?: string;
}

/** Prints what commands find: tables for people, one JSON document for programs, the essential value for `--quiet`. */
export interface Output {
  readonly json: boolean;
  readonly quiet: boolean;
  /** Colours of standard output. */
  readonly paint: Paint;
  list<Desc extends DescMessage>(list: ListOutput<Desc>): void;
  show<Desc extends DescMessage>(show: ShowOutput<Desc>): void;
  /** Prints what is no single resource: `document` for programs, `text` for people, `essential` for `--quiet`. */
  result(document: JsonValue, text: string, essential?: string): void;
  /** Says something in passing, on standard error; not with `--quiet`. */
  note(text: string): void;
  /** Says something that must not be missed, on standard error, always. */
  warn(text: string): void;
  /** Draws a table as text. */
  table<T>(items: readonly T[], columns: readonly Column<T>[]): string;
}

/** Opens the output of one command. `json` and `quiet` are what the person chose; `json` wins. */
export function openOutput(
  terminal: Terminal,
  options: { json?: boolean; quiet?: boolean; color?: boolean } = {},
): Output {
  const json = options.json === true;
  const quiet = options.quiet === true;
  const paint = createPaint(!json && wantsColor(terminal.env, terminal.outIsTty, options.color === false));
  const errPaint = createPaint(wantsColor(terminal.env, terminal.errIsTty, options.color === false));
  const line = (text: string) => terminal.out(text.endsWith("\n") ? text : `${text}\n`);
  const document = (value: JsonValue) => line(JSON.stringify(value, null, 2));
  const table = <T>(items: readonly T[], columns: readonly Column<T>[]) => drawTable(items, columns, paint);

  return {
    json,
    quiet,
    paint,
    table,
    list({ schema, key, items, columns, empty, essential, truncated }) {
      if (json) {
        const rows = items.map((item) => toDocument(schema, item));
        document({ [key]: rows, truncated: truncated === true });
      } else if (quiet) {
        for (const item of items) line(essential?.(item) ?? idOf(item));
      } else if (items.length === 0) {
        line(paint.dim(empty));
      } else {
        line(table(items, columns));
        if (truncated === true) line(paint.dim(`Only the first ${items.length}; --limit shows more.`));
      }
    },
    show({ schema, item, headline, facts, essential }) {
      if (json) {
        document(toDocument(schema, item));
        return;
      }
      if (quiet) {
        const text = essential ?? idOf(item);
        if (text !== "") line(text);
        return;
      }
      if (headline !== undefined) line(paint.green(headline));
      const shown = facts.filter(([, value]) => value !== "");
      const width = Math.max(0, ...shown.map(([label]) => label.length));
      for (const [label, value] of shown) line(`  ${paint.dim(label.padEnd(width))}  ${value}`);
    },
    result(value, text, essential = "") {
      if (json) document(value);
      else if (!quiet) line(text);
      else if (essential !== "") line(essential);
    },
    note(text) {
      if (!quiet) terminal.err(`${errPaint.dim(text)}\n`);
    },
    warn(text) {
      terminal.err(`${errPaint.yellow(text)}\n`);
    },
  };
}

/**
 * A resource as programs get it: the contract's JSON with proto field names and every field present, except secrets
 * that this answer does not hold.
 */
export function toDocument<Desc extends DescMessage>(schema: Desc, item: MessageShape<Desc>): JsonValue {
  const document = toJson(schema, item, { useProtoFieldName: true, alwaysEmitImplicit: true });
  if (document === null || typeof document !== "object" || Array.isArray(document)) return document;
  for (const field of schema.fields) {
    const secret = hasOption(field, data_class) && getOption(field, data_class) === DataClass.SECRET;
    if (secret && document[field.name] === "") delete document[field.name];
  }
  return document;
}

function drawTable<T>(items: readonly T[], columns: readonly Column<T>[], paint: Paint): string {
  const blank = { top: "", "top-mid": "", "top-left": "", "top-right": "", bottom: "", "bottom-mid": "" };
  const table = new Table({
    head: columns.map((column) => paint.bold(column.title)),
    colAligns: columns.map((column) => column.align ?? "left"),
    chars: {
      ...blank,
      "bottom-left": "",
      "bottom-right": "",
      left: "",
      "left-mid": "",
      mid: "",
      "mid-mid": "",
      right: "",
      "right-mid": "",
      middle: "  ",
    },
    style: { head: [], border: [], "padding-left": 0, "padding-right": 0, compact: true },
  });
  for (const item of items) table.push(columns.map((column) => column.value(item)));
  return table
    .toString()
    .split("\n")
    .map((row) => row.trimEnd())
    .join("\n");
}

function idOf(item: object): string {
  return "id" in item && typeof item.id === "string" ? item.id : "";
}

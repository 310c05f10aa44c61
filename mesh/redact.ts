import { type DescField, type DescMessage, getOption, hasOption, type Message, ScalarType } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import { type Duration, durationMs, type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";
import { DataClass, data_class, fields as fieldsOption } from "@octomesh/proto/octomesh/policy/v1/policy_pb";

/** What a log may show: JSON without any value that the contract calls personal or secret, and bounded. */
export type Loggable = string | number | boolean | readonly Loggable[] | { readonly [name: string]: Loggable };

/** Longest text that is shown, in UTF-16 code units; of a longer one its beginning and its length. */
const maxCharacters = 128;
/** How many elements of a list or map are shown; of a longer one the first, and how many more there are. */
const maxElements = 8;
/** How deep messages are shown in one another. */
const maxDepth = 8;
/** How many values are shown altogether, so that lists in lists stay small too. */
const maxValues = 256;

/**
 * A message as a log may show it, by the data class of each field (DESIGN section 2): its own, else its message's
 * default. PUBLIC, OPERATIONAL and IDENTIFIER are shown; PERSONAL and SECRET become "[personal]" and "[secret]" whatever
 * they hold; what has no class becomes "[unclassified]". Fields that are not set are left out, unknown ones never shown.
 *
 * Names are those of the contract. Enum values are named, 64-bit integers and times are text, of bytes only the length is
 * shown. Text is cut at 128 characters, lists and maps at 8 elements, messages at a depth of 8, and all of it at 256
 * values.
 */
export function redact(schema: DescMessage, message: Message): Loggable {
  return showMessage(reflect(schema, message, false), 0, { left: maxValues });
}

/** How many values may still be shown. */
interface Budget {
  left: number;
}

/** What is done with one field: a text stands in for its value, or the value is shown. */
interface FieldPlan {
  readonly field: DescField;
  readonly instead: string | undefined;
}

const plans = new WeakMap<DescMessage, readonly FieldPlan[]>();

function planOf(schema: DescMessage): readonly FieldPlan[] {
  const known = plans.get(schema);
  if (known !== undefined) return known;
  const plan = schema.fields.map((field) => ({ field, instead: standInOf(field) }));
  plans.set(schema, plan);
  return plan;
}

function standInOf(field: DescField): string | undefined {
  switch (classOf(field)) {
    case DataClass.PUBLIC:
    case DataClass.OPERATIONAL:
    case DataClass.IDENTIFIER:
      return undefined;
    case DataClass.PERSONAL:
      return "[personal]";
    case DataClass.SECRET:
      return "[secret]";
    default:
      return "[unclassified]";
  }
}

/** The data class of a field: its own, else its message's default, else UNSPECIFIED. */
function classOf(field: DescField): DataClass {
  if (hasOption(field, data_class)) return getOption(field, data_class);
  return hasOption(field.parent, fieldsOption) ? getOption(field.parent, fieldsOption) : DataClass.UNSPECIFIED;
}

function showMessage(message: ReflectMessage, depth: number, budget: Budget): Loggable {
  const known = showWellKnown(message);
  if (known !== undefined) return known;
  if (depth >= maxDepth) return "[too deep]";
  const shown: [string, Loggable][] = [];
  for (const { field, instead } of planOf(message.desc)) {
    if (!message.isSet(field)) continue;
    if (budget.left <= 0) {
      shown.push(["…", "[cut]"]);
      break;
    }
    budget.left -= 1;
    shown.push([field.name, instead ?? showField(message, field, depth, budget)]);
  }
  return Object.fromEntries(shown);
}

/** Messages that say when and how long, whose fields carry no class of ours. Others of that package are like any. */
function showWellKnown({ desc, message }: ReflectMessage): Loggable | undefined {
  if (desc.typeName === "google.protobuf.Timestamp") {
    const date = timestampDate(message as Timestamp);
    return Number.isNaN(date.getTime()) ? "[no time]" : date.toISOString();
  }
  if (desc.typeName === "google.protobuf.Duration") return `${durationMs(message as Duration) / 1000}s`;
  return undefined;
}

function showField(message: ReflectMessage, field: DescField, depth: number, budget: Budget): Loggable {
  switch (field.fieldKind) {
    case "message":
      return showMessage(message.get(field), depth + 1, budget);
    case "enum":
      return showEnum(field, message.get(field));
    case "scalar":
      return showScalar(field.scalar, message.get(field));
    case "list": {
      const list = message.get(field);
      const shown: Loggable[] = [];
      for (const element of list) {
        if (shown.length === maxElements || budget.left <= 0) break;
        budget.left -= 1;
        shown.push(showElement(field, element, depth, budget));
      }
      return list.size > shown.length ? [...shown, moreOf(list.size - shown.length)] : shown;
    }
    case "map": {
      const map = message.get(field);
      const shown: [string, Loggable][] = [];
      for (const [key, value] of map) {
        if (shown.length === maxElements || budget.left <= 0) break;
        budget.left -= 1;
        shown.push([cut(String(key)), showElement(field, value, depth, budget)]);
      }
      if (map.size > shown.length) shown.push(["…", moreOf(map.size - shown.length)]);
      return Object.fromEntries(shown);
    }
  }
}

function showElement(
  field: DescField & { fieldKind: "list" | "map" },
  value: unknown,
  depth: number,
  budget: Budget,
): Loggable {
  const kind = field.fieldKind === "list" ? field.listKind : field.mapKind;
  if (kind === "message") return showMessage(value as ReflectMessage, depth + 1, budget);
  if (kind === "enum") return showEnum(field, value as number);
  return showScalar(field.scalar, value);
}

function showEnum(field: DescField, value: number): Loggable {
  return field.enum?.value[value]?.name ?? value;
}

function showScalar(type: ScalarType | undefined, value: unknown): Loggable {
  if (type === ScalarType.BYTES) return `${(value as Uint8Array).length} bytes`;
  if (typeof value === "boolean") return value;
  if (typeof value === "number" && Number.isFinite(value)) return value;
  return cut(String(value));
}

function cut(text: string): string {
  return text.length <= maxCharacters ? text : `${text.slice(0, maxCharacters)}… (${text.length} characters)`;
}

function moreOf(count: number): string {
  return `… ${count} more`;
}

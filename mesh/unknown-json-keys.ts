import type { DescField, DescMessage, JsonValue } from "@bufbuild/protobuf";
import { fail, Reason } from "./errors.ts";

/**
 * Finds the keys of a JSON document that name no field of the message it is to be read as, at any depth. Answers where
 * each stands, such as `reports[3].health.note`, and never a value; keys that do not look like field names are shown as
 * `?`, for they may be values in disguise. Both the names of the contract and their lowerCamelCase forms are known.
 *
 * Only says what is unknown: whether the rest is well formed is for the JSON reader of protobuf. At most 32 are found.
 */
export function findUnknownKeys(schema: DescMessage, json: JsonValue): string[] {
  const found: string[] = [];
  search(schema, json, "", found);
  return found;
}

/** Refuses a JSON document with keys that name no field: UNKNOWN_FIELD, with where they stand and without values. */
export function refuseUnknownKeys(schema: DescMessage, json: JsonValue): void {
  const found = findUnknownKeys(schema, json);
  if (found.length === 0) return;
  const fields = found.slice(0, 16).join(", ");
  throw fail(Reason.UNKNOWN_FIELD, `the contract knows no field ${fields}`, { fields });
}

const maxFound = 32;

function search(schema: DescMessage, json: JsonValue, path: string, found: string[]): void {
  // Well-known types have JSON forms of their own.
  if (schema.typeName.startsWith("google.protobuf.") || typeof json !== "object" || json === null) return;
  if (Array.isArray(json)) return;
  for (const [key, value] of Object.entries(json)) {
    if (found.length >= maxFound) return;
    const field = schema.fields.find(({ name, jsonName }) => name === key || jsonName === key);
    const shown = field?.name ?? (/^[A-Za-z][A-Za-z0-9_]{0,63}$/.test(key) ? key : "?");
    const place = path === "" ? shown : `${path}.${shown}`;
    if (field === undefined) found.push(place);
    else searchField(field, value, place, found);
  }
}

function searchField(field: DescField, value: JsonValue, place: string, found: string[]): void {
  if (field.message === undefined) return;
  if (field.fieldKind === "message") {
    search(field.message, value, place, found);
  } else if (field.fieldKind === "list" && Array.isArray(value)) {
    for (const [index, item] of value.entries()) search(field.message, item, `${place}[${index}]`, found);
  } else if (field.fieldKind === "map" && typeof value === "object" && value !== null && !Array.isArray(value)) {
    for (const item of Object.values(value)) search(field.message, item, `${place}[]`, found);
  }
}

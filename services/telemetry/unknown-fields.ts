import type { DescMessage, Message } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";

/** A field that the contract does not know, by where it stands. Never holds a value. */
export interface UnknownField {
  /** The message that holds it, as a path from the request, such as `reports[3].health`; empty for the request. */
  readonly path: string;
  /** The field number. */
  readonly number: number;
}

/**
 * Finds every field of a message, at any depth, that was read from the wire and is not in the contract. Bounded by the
 * message's size; a message that the device sent whole is as deep as the contract, which is finite.
 */
export function findUnknownFields(schema: DescMessage, message: Message): UnknownField[] {
  const found: UnknownField[] = [];
  search(reflect(schema, message), "", found);
  return found;
}

function search(message: ReflectMessage, path: string, found: UnknownField[]): void {
  for (const { no } of message.getUnknown() ?? []) found.push({ path, number: no });
  for (const [name, child] of children(message)) search(child, path === "" ? name : `${path}.${name}`, found);
}

function* children(message: ReflectMessage): Iterable<[string, ReflectMessage]> {
  for (const field of message.fields) {
    if (!message.isSet(field)) continue;
    if (field.fieldKind === "message") {
      yield [field.name, message.get(field)];
    } else if (field.fieldKind === "list" && field.listKind === "message") {
      let index = 0;
      for (const item of message.get(field)) yield [`${field.name}[${index++}]`, item as ReflectMessage];
    } else if (field.fieldKind === "map" && field.mapKind === "message") {
      for (const item of message.get(field).values()) yield [`${field.name}[]`, item as ReflectMessage];
    }
  }
}

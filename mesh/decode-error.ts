import type { ConnectError } from "@connectrpc/connect";
import { fail, Reason } from "./errors.ts";

/**
 * Says which field of a JSON body cannot be read, and what is expected there, without the value that was sent: it may
 * be anything, a secret or what a person typed. Undefined for errors that are not of this kind.
 */
export function decodeRefusal(error: ConnectError): ConnectError | undefined {
  const found = /cannot decode (field|enum) ([\w.]+) from JSON/.exec(error.rawMessage);
  const [, kind, name] = found ?? [];
  if (kind === undefined || name === undefined) return undefined;
  const rest = error.rawMessage.slice((found?.index ?? 0) + (found?.[0].length ?? 0));
  const item = /^: (list item #\d+)/.exec(rest)?.[1];
  const expected = /: (expected [A-Za-z0-9 ()]+?)(?:,|$)/.exec(rest)?.[1];
  const problem = kind === "enum" ? "there is no such value" : (expected ?? "the value cannot be read");
  const where = item === undefined ? name : `${name}, ${item}`;
  return fail(Reason.VALIDATION_FAILED, `${where}: ${problem}`, { field: name }, { cause: error });
}

import { fail, Reason } from "@octomesh/mesh/errors";

/**
 * Throws VALIDATION_FAILED, naming the field, for text that PostgreSQL cannot hold: U+0000. Batches need the check
 * before they are made, or one caller's text would fail the others'.
 */
export function assertStorable(fields: Readonly<Record<string, string>>): void {
  for (const [field, value] of Object.entries(fields)) {
    if (value.includes("\u0000")) {
      throw fail(Reason.VALIDATION_FAILED, `${field} holds the character U+0000`, { field });
    }
  }
}

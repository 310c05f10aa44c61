import { isIdOf } from "./check-id.ts";
import { usageError } from "./command-error.ts";

// As the contract has it: octomesh.model.v1.CreateModelVersionRequest.version.
const pattern =
  /^(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)(?:-[0-9A-Za-z.-]{1,20})?(?:\+[0-9A-Za-z.-]{1,20})?$/;

/** Checks the number of a version (Semantic Versioning, up to 64 characters) and returns it. Throws a usage error. */
export function checkVersion(text: string): string {
  if (text.length <= 64 && pattern.test(text)) return text;
  throw usageError(
    `"${text.slice(0, 70)}" is not a version`,
    "Give a version such as 1.2.0 or 1.2.0-beta.1: three numbers, as in Semantic Versioning.",
  );
}

/** Checks how a person names a version that exists: by number, by id, or as `latest`. Throws a usage error. */
export function checkVersionReference(text: string): string {
  return text === "latest" || isIdOf("mvr", text) ? text : checkVersion(text);
}

import { usageError } from "./command-error.ts";

// As the contract has it: octomesh.model.v1.CreateModelRequest.name. The id of a model has this form too.
const pattern = /^[a-z0-9][a-z0-9._-]{0,99}$/;

/** Checks the name (or the id) of a model, up to 100 characters, and returns it. Throws a usage error. */
export function checkModelName(text: string): string {
  if (pattern.test(text)) return text;
  throw usageError(
    `"${text.slice(0, 110)}" cannot name a model`,
    "Use lower-case letters, digits, - _ . and begin with a letter or digit; 100 characters at most.",
  );
}

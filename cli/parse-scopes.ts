import { getOption, hasOption } from "@bufbuild/protobuf";
import { type Scope, ScopeSchema, scope_meaning, scope_name } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { usageError } from "./command-error.ts";

const scopes = ScopeSchema.values
  .filter((value) => hasOption(value, scope_name))
  .map((value) => ({
    scope: value.number as Scope,
    name: getOption(value, scope_name),
    meaning: getOption(value, scope_meaning),
  }));

/** Every scope of the contract with its name (`models:read`) and what it gives access to, in the contract's order. */
export function allScopes(): readonly { scope: Scope; name: string; meaning: string }[] {
  return scopes;
}

/**
 * Reads a list of scopes as it stands in commands: `models:read,models:write`. Order is kept and repetitions fold.
 *
 * Throws a usage error that names the scope it does not know, and one for an empty list.
 */
export function parseScopes(text: string): Scope[] {
  const names = text
    .split(",")
    .map((name) => name.trim())
    .filter((name) => name !== "");
  if (names.length === 0) throw usageError("no scope is given", "List at least one, such as models:read.");
  const found = new Set<Scope>();
  for (const name of names) {
    const known = scopes.find((candidate) => candidate.name === name);
    if (known === undefined) {
      throw usageError(
        `there is no scope "${name.slice(0, 40)}"`,
        `Scopes are ${scopes.map((s) => s.name).join(", ")}.`,
      );
    }
    found.add(known.scope);
  }
  return [...found];
}

/** The name of a scope as it stands in keys and commands; `unknown(n)` for one that is newer than this program. */
export function scopeName(scope: Scope): string {
  return scopes.find((candidate) => candidate.scope === scope)?.name ?? `unknown(${scope})`;
}

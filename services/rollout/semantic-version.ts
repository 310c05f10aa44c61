/** A version in the form of Semantic Versioning 2.0.0. */
export interface SemanticVersion {
  readonly major: number;
  readonly minor: number;
  readonly patch: number;
  /** Dot-separated identifiers after `-`; empty for a release. */
  readonly prerelease: readonly string[];
  /** Dot-separated identifiers after `+`. */
  readonly build: readonly string[];
}

/** The grammar's own regular expression (semver.org, question "Is there a suggested regular expression"). */
const pattern =
  /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$/;

/**
 * Reads a version of at most 64 characters; undefined where it is not one by the grammar of Semantic Versioning 2.0.0,
 * or where a number is larger than JavaScript counts exactly.
 */
export function parseSemanticVersion(text: string): SemanticVersion | undefined {
  if (text.length > 64) return undefined;
  const match = pattern.exec(text);
  if (match === null) return undefined;
  const [major, minor, patch] = match.slice(1, 4).map(Number) as [number, number, number];
  if (![major, minor, patch].every(Number.isSafeInteger)) return undefined;
  return { major, minor, patch, prerelease: match[4]?.split(".") ?? [], build: match[5]?.split(".") ?? [] };
}

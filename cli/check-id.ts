import { usageError } from "./command-error.ts";

/** The kinds of ids that people type, by the prefix that the contract gives them. */
export type IdPrefix =
  | "btk"
  | "dev"
  | "ecr"
  | "esk"
  | "grp"
  | "key"
  | "lic"
  | "mdl"
  | "mvr"
  | "pky"
  | "rdt"
  | "rol"
  | "usr";

const names: Readonly<Record<IdPrefix, string>> = {
  btk: "a bootstrap token",
  dev: "a device",
  ecr: "an edge's certificate",
  esk: "an edge's signing key",
  grp: "a group",
  key: "an API key",
  lic: "a licence",
  mdl: "a model",
  mvr: "a version",
  pky: "a partner key",
  rdt: "a read token",
  rol: "a rollout",
  usr: "a member",
};

/** Whether a text has the form of an id of this kind: the prefix, `_` and 26 letters and digits. */
export function isIdOf(prefix: IdPrefix, text: string): boolean {
  return new RegExp(`^${prefix}_[a-z2-7]{26}$`).test(text);
}

/** Checks that a text has the form of an id of this kind and returns it. Throws a usage error that shows the form. */
export function checkId(prefix: IdPrefix, text: string): string {
  const trimmed = text.trim();
  if (isIdOf(prefix, trimmed)) return trimmed;
  throw usageError(
    `"${text.slice(0, 60)}" is not the id of ${names[prefix]}`,
    `Give an id such as ${prefix}_…: the prefix and 26 letters and digits, as the list shows it.`,
  );
}

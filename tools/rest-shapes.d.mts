/** Schemas of REST answers whose JSON is not that of their rpc, by name. */
export declare const restSchemas: Readonly<
  Record<
    "rest.Place" | "rest.PendingVerdict" | "rest.Verdict",
    { readonly required: readonly string[]; readonly properties: Readonly<Record<string, Record<string, unknown>>> }
  >
>;

/** What an operation's description says differently, by `Service.Method`. */
export declare const restShapes: ReadonlyMap<string, unknown>;

import { createContextKey, type HandlerContext } from "@connectrpc/connect";
import type { Call } from "./call.ts";

/** Where the runtime keeps the admitted call of an rpc. */
export const callKey = createContextKey<Call | undefined>(undefined, { description: "call" });

/** The admitted call that a handler runs in. Throws if policy was not enforced, which the runtime never lets happen. */
export function callOf(context: Pick<HandlerContext, "values">): Call {
  const call = context.values.get(callKey);
  if (call === undefined) throw new Error("the handler runs outside enforcePolicy");
  return call;
}

/**
 * The same call in an organisation that its credential alone does not name: for methods that admit PUBLIC callers and
 * find the organisation by a secret in the request (set-up code, refresh token, invitation).
 */
export function withOrganization(call: Call, orgId: string): Call {
  return { ...call, orgId, caller: { ...call.caller, orgId } };
}

import { type Reason, reasonOf } from "@octomesh/mesh/errors";

/** The reason that a call of a test was refused for; undefined where it was not refused. */
export async function refusalOf(call: Promise<unknown>): Promise<Reason | undefined> {
  try {
    await call;
    return undefined;
  } catch (error) {
    const reason = reasonOf(error);
    if (reason === undefined) throw error;
    return reason;
  }
}

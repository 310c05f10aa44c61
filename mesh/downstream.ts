import type { ConnectError } from "@connectrpc/connect";

/** Where an error came from that a sibling answered. */
export interface Downstream {
  /** The sibling. */
  readonly service: string;
  /** Whether the call was made on behalf of the original caller: then the refusal is meant for that caller. */
  readonly delegated: boolean;
}

const marks = new WeakMap<ConnectError, Downstream>();

/** Notes that an error came from a sibling, so that it is not taken for a refusal of ours. */
export function markDownstream(error: ConnectError, downstream: Downstream): void {
  marks.set(error, downstream);
}

/** Where an error came from; undefined for errors of this service. */
export function downstreamOf(error: ConnectError): Downstream | undefined {
  return marks.get(error);
}

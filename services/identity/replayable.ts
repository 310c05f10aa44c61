import { createHash } from "node:crypto";
import { type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import type { Call } from "@octomesh/mesh/call";
import { once } from "@octomesh/mesh/idempotency";
import type { IdentityTransaction } from "./schema.ts";

/** Header of an answer that was given before, and therefore lacks its secret. */
export const replayedHeader = "octomesh-replayed";

/** A method and the messages it takes and gives, as the generated code describes it. */
interface Method<I extends DescMessage, O extends DescMessage> {
  readonly name: string;
  readonly parent: { readonly typeName: string };
  readonly input: I;
  readonly output: O;
}

/**
 * Makes a creation repeatable by its `request_id` (DESIGN 8.15): a repetition gets the stored answer. What `run` answers
 * is stored, so the secret is added by the caller afterwards, and only if nothing was replayed.
 */
export async function replayable<I extends DescMessage, O extends DescMessage>(
  tx: IdentityTransaction,
  call: Call,
  method: Method<I, O>,
  request: MessageShape<I> & { readonly requestId: string },
  run: () => Promise<MessageShape<O>>,
): Promise<{ message: MessageShape<O>; replayed: boolean }> {
  const digest = createHash("sha256").update(toBinary(method.input, request)).digest();
  const name = `${method.parent.typeName}/${method.name}`;
  const { answer, replayed } = await once(tx, call, name, request.requestId, digest, async () =>
    toBinary(method.output, await run()),
  );
  return { message: fromBinary(method.output, answer), replayed };
}

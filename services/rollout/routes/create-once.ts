import { createHash } from "node:crypto";
import { type DescMessage, type DescMethod, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import type { Call } from "@octomesh/mesh/call";
import { once } from "@octomesh/mesh/idempotency";
import type { Dependencies } from "../dependencies.ts";
import type { Tx } from "../store/tables.ts";

/**
 * Makes a resource once per request id, in one audited transaction. A repetition is answered with what the first call
 * answered, and says so in the header `octomesh-replayed`.
 */
export async function createOnce<I extends DescMessage, O extends DescMessage>(
  { database }: Pick<Dependencies, "database">,
  ctx: Pick<HandlerContext, "responseHeader">,
  call: Call,
  method: DescMethod & { input: I; output: O },
  request: MessageShape<I> & { requestId: string },
  run: (tx: Tx) => Promise<MessageShape<O>>,
): Promise<MessageShape<O>> {
  const digest = createHash("sha256").update(toBinary(method.input, request)).digest();
  const name = `${method.parent.typeName}/${method.name}`;
  const { answer, replayed } = await database.write(call, (tx) =>
    once(tx, call, name, request.requestId, digest, async () => toBinary(method.output, await run(tx))),
  );
  if (replayed) ctx.responseHeader.set("octomesh-replayed", "true");
  return fromBinary(method.output, answer);
}

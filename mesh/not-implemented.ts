import type { DescService } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import { fail, Reason } from "./errors.ts";

/**
 * An implementation whose every method refuses with NOT_IMPLEMENTED: for rpc services of the contract that this release
 * does not serve yet. They are registered all the same, so that policy, limits and the refusal tests cover them.
 */
export function notImplemented<S extends DescService>(service: S): Partial<ServiceImpl<S>> {
  const methods = service.methods.map((method) => {
    const name = `${service.typeName}/${method.name}`;
    const refusal = () => fail(Reason.NOT_IMPLEMENTED, `${name} is not served by this release`, { method: name });
    const isStreaming = method.methodKind === "server_streaming" || method.methodKind === "bidi_streaming";
    return [method.localName, isStreaming ? () => refuseStream(refusal) : () => Promise.reject(refusal())];
  });
  return Object.fromEntries(methods) as Partial<ServiceImpl<S>>;
}

// biome-ignore lint/correctness/useYield: the stream ends with its refusal before the first message.
async function* refuseStream(refusal: () => Error): AsyncGenerator<never> {
  throw refusal();
}

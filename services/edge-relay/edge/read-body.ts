import type { HttpRequest } from "@octomesh/mesh/service";

/** What came of reading a body; `gone` where the client broke off or took too long. */
export type Body =
  | { readonly kind: "whole"; readonly bytes: Buffer }
  | { readonly kind: "too_large" }
  | { readonly kind: "gone" };

/** Reads a request's body of at most `maxBytes` within `timeoutMs`. Never rejects. */
export function readBody(request: HttpRequest, maxBytes: number, timeoutMs: number): Promise<Body> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let length = 0;
    const finish = (body: Body): void => {
      clearTimeout(timer);
      request.off("data", take);
      // What still comes is let by, up to the listener's own bounds, so that the answer is read.
      request.resume();
      resolve(body);
    };
    const take = (chunk: Buffer): void => {
      length += chunk.length;
      if (length > maxBytes) finish({ kind: "too_large" });
      else chunks.push(chunk);
    };
    const timer = setTimeout(() => finish({ kind: "gone" }), timeoutMs);
    if (Number(request.headers["content-length"] ?? 0) > maxBytes) return finish({ kind: "too_large" });
    request.on("data", take);
    request.once("end", () => finish({ kind: "whole", bytes: Buffer.concat(chunks) }));
    request.once("error", () => finish({ kind: "gone" }));
    request.once("close", () => finish({ kind: "gone" }));
  });
}

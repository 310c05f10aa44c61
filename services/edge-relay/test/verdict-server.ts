import { createPublicKey, verify } from "node:crypto";
import { once } from "node:events";
import { createSecureServer, type ServerHttp2Session } from "node:http2";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { fromBinary } from "@bufbuild/protobuf";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { TestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { type SignalBundle, SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import {
  type SubmitSignalsResponseSchema,
  VerdictService,
} from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";

/** A bundle as it arrived. */
export interface TakenBundle {
  readonly bundle: SignalBundle;
  readonly license: string | null;
  readonly keyId: string;
  readonly isSigned: boolean;
  readonly returnVerdict: boolean;
  /** Subject of the connection's client certificate; undefined without one. */
  readonly clientSubject: string | undefined;
}

/** A verdict service that listens, verifies signatures, and answers as a test says. */
export interface VerdictServer {
  readonly port: number;
  readonly url: string;
  readonly taken: TakenBundle[];
  /** Connections that edges opened. */
  readonly connections: number;
  /** Answers from now on so; by default bundles of a session are taken, and others refused as the real service does. */
  answer(respond: Respond | undefined): void;
  /** Stops listening and cuts what is open. */
  stop(): Promise<void>;
}

/** What a test answers a bundle; it may throw. */
export type Respond = (
  taken: TakenBundle,
) =>
  | MessageInitShape<typeof SubmitSignalsResponseSchema>
  | Promise<MessageInitShape<typeof SubmitSignalsResponseSchema>>;

/** Starts one. `keys` are the signing keys that it knows: base64 of 32 bytes, by id. */
export async function startVerdictServer(options: {
  authority: TestAuthority;
  keys: ReadonlyMap<string, string>;
  port?: number;
}): Promise<VerdictServer> {
  const { key, certificate, bundle: ca } = await options.authority.issue();
  const taken: TakenBundle[] = [];
  const sessions = new Set<ServerHttp2Session>();
  let connections = 0;
  let respond: Respond = takeOnce();
  const adapter = connectNodeAdapter({
    routes(router) {
      router.service(VerdictService, {
        async submitSignals({ signedBundle, keyId, signature, returnVerdict }, context) {
          const publicKey = options.keys.get(keyId);
          if (signature.length === 0) throw fail(Reason.EDGE_SIGNATURE_REQUIRED, "no signature");
          if (publicKey === undefined) throw fail(Reason.EDGE_KEY_UNKNOWN, "unknown key");
          const isSigned = isSignedBy(publicKey, "octomesh edge signals v1", signedBundle, signature);
          if (!isSigned) throw fail(Reason.EDGE_SIGNATURE_INVALID, "wrong signature");
          const one: TakenBundle = {
            bundle: fromBinary(SignalBundleSchema, signedBundle),
            license: context.requestHeader.get("x-octet-license"),
            keyId,
            isSigned,
            returnVerdict,
            clientSubject: context.requestHeader.get("x-test-subject") ?? undefined,
          };
          taken.push(one);
          return respond(one);
        },
      });
    },
  });
  const server = createSecureServer(
    { key, cert: certificate, ca, requestCert: true, rejectUnauthorized: false },
    (request, response) => {
      const socket = request.stream.session?.socket as TLSSocket | undefined;
      const subject = socket?.authorized === true ? socket.getPeerX509Certificate()?.subject : undefined;
      delete request.headers["x-test-subject"];
      if (subject !== undefined) request.headers["x-test-subject"] = subject.replaceAll("\n", ",");
      adapter(request, response);
    },
  );
  server.on("session", (session) => {
    connections += 1;
    sessions.add(session);
    session.on("close", () => sessions.delete(session));
  });
  server.listen(options.port ?? 0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    port,
    url: `https://localhost:${port}`,
    taken,
    get connections() {
      return connections;
    },
    answer(next) {
      respond = next ?? takeOnce();
    },
    async stop() {
      for (const session of sessions) session.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** One bundle for a session; the same bundle again is a duplicate, another one is refused. */
function takeOnce(): Respond {
  const bundles = new Map<string, string>();
  return ({ bundle: { sessionRef, bundleId } }) => {
    if (sessionRef === "") throw fail(Reason.SIGNALS_INCOMPLETE, "no session");
    const before = bundles.get(sessionRef);
    if (before !== undefined && before !== bundleId) throw fail(Reason.SESSION_REPORTED, "reported before");
    bundles.set(sessionRef, bundleId);
    return { ok: true, duplicate: before !== undefined };
  };
}

/** Whether an Ed25519 signature over a purpose, a zero byte and the bytes is good. */
export function isSignedBy(publicKey: string, purpose: string, bytes: Uint8Array, signature: Uint8Array): boolean {
  const key = createPublicKey({
    key: { kty: "OKP", crv: "Ed25519", x: Buffer.from(publicKey, "base64").toString("base64url") },
    format: "jwk",
  });
  return verify(null, Buffer.concat([Buffer.from(`${purpose}\0`), bytes]), key, signature);
}

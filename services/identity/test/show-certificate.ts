import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { connect, createServer, type TLSSocket } from "node:tls";
import type { EdgeCertificateIdentity } from "@octomesh/mesh/connection";
import { edgeConnectionOf } from "@octomesh/mesh/edge-connection";
import { edgePortTls } from "@octomesh/mesh/edge-port";
import { createTestAuthority } from "@octomesh/mesh/test/certificate-fixture";

/**
 * Shows a client certificate to a port as edges reach one, over TLS, and answers whom the port takes it for: undefined
 * where the handshake did not verify it.
 */
export async function showCertificate(options: {
  key: string;
  certificate: string;
  authorities: readonly string[];
  trustDomain: string;
}): Promise<EdgeCertificateIdentity | undefined> {
  const current = await (await createTestAuthority()).issue();
  const tls = edgePortTls(
    { current: () => current },
    { authorities: () => options.authorities, onChange: () => () => true },
  );
  const server = createServer(tls.options());
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const accepted = once(server, "secureConnection") as Promise<[TLSSocket]>;
  const { port } = server.address() as AddressInfo;
  const client = connect({
    port,
    host: "127.0.0.1",
    key: options.key,
    cert: options.certificate,
    rejectUnauthorized: false,
  });
  client.on("error", () => undefined);
  try {
    const [socket] = await accepted;
    socket.on("error", () => undefined);
    const { certificate } = edgeConnectionOf(socket, options.trustDomain, Date.now());
    socket.destroy();
    return certificate;
  } finally {
    client.destroy();
    server.close();
  }
}

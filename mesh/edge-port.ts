import { constants } from "node:crypto";
import type { EdgeTrust } from "./edge-trust.ts";
import type { ListenTls } from "./listen.ts";

/** Key and certificate chain of a port, PEM, which may be replaced while the port is open. */
export interface PortCertificate {
  current(): { readonly key: string; readonly certificate: string };
  /** Calls back when they were replaced. Returns the way to stop it. */
  onChange?(callback: () => void): () => void;
}

/**
 * TLS of the port that edges reach, TLS 1.2 and 1.3. A client certificate is asked for and not demanded: whether one is
 * needed is for the licence to say. One that is shown is verified against the edges' authorities alone, and against none
 * until they are known. Sessions are not resumed, so every connection proves its certificate against the authorities of
 * the moment. Follows both when they change.
 */
export function edgePortTls(
  certificate: PortCertificate,
  trust: Pick<EdgeTrust, "authorities" | "onChange">,
): ListenTls {
  return {
    options() {
      const { key, certificate: cert } = certificate.current();
      return {
        key,
        cert,
        // An empty list, unlike none, leaves the machine's own authorities out.
        ca: [...trust.authorities()],
        minVersion: "TLSv1.2",
        secureOptions: constants.SSL_OP_NO_TICKET,
        requestCert: true,
        rejectUnauthorized: false,
      };
    },
    onChange(callback) {
      const stops = [trust.onChange(callback), certificate.onChange?.(callback)];
      return () => {
        for (const stop of stops) stop?.();
      };
    },
  };
}

import { createContextKey } from "@connectrpc/connect";
import type { ServiceName } from "./service-name.ts";

/** What the listener knows of the connection that a request came over. Nothing of it comes from the request's headers, but for the address behind trusted proxies. */
export interface Connection {
  /** `mesh`: mutual TLS between services. `public`: everyone else. */
  readonly listener: "mesh" | "public";
  /** True client address, IPv4 or IPv6 in text. */
  readonly address: string;
  /** The service whose certificate the connection proved; only on the mesh listener. */
  readonly peer?: { readonly service: ServiceName; readonly spiffeId: string };
  /** Present where the connection came over the TLS listener that edges use: licences are looked at there, and nowhere else. */
  readonly edge?: EdgeConnection;
}

/** What a connection over the edges' listener has proved. */
export interface EdgeConnection {
  /** The edge's client certificate; absent unless the handshake verified it and it says what an edge's must say. */
  readonly certificate?: EdgeCertificateIdentity;
}

/** Whose a client certificate of an edge is. */
export interface EdgeCertificateIdentity {
  /** `spiffe://<trust domain>/edge/<org>/<certificate>`. */
  readonly spiffeId: string;
  readonly orgId: string;
  readonly licenseId: string;
  readonly certificateId: string;
}

/** Where the runtime keeps the connection of an rpc. */
export const connectionKey = createContextKey<Connection | undefined>(undefined, { description: "connection" });

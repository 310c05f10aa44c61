import type { Role, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { CallerKind as WireCallerKind } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import type { ServiceName } from "./service-name.ts";

/** Kinds of caller, by the credential that they present (policy.proto). */
export type CallerKind =
  | "public"
  | "session"
  | "api_key"
  | "device"
  | "bootstrap"
  | "edge"
  | "partner"
  | "read_token"
  | "peer"
  | "delegated"
  | "system";

/** Who calls, as proved by a credential. Nothing here comes from the request's own fields. */
export interface Caller {
  readonly kind: CallerKind;
  /** The organisation, "" for callers that have none (public, peer). */
  readonly orgId: string;
  /** Who: `usr_…`, `key_…`, `dev_…`, `btk_…`, `rdt_…`, `pky_…`, `lic_…`, or the name of a service. "" for public. */
  readonly id: string;
  /**
   * The credential: `ses_…`, `key_…`, `crd_…`, `btk_…`, `pky_…`, or a SPIFFE ID; for kind edge the client certificate,
   * `ecr_…`, and "" where the edge has shown none.
   */
  readonly credentialId: string;
  /** What the credential may do. */
  readonly scopes: ReadonlySet<Scope>;
  /** A member's role; UNSPECIFIED for all others. */
  readonly role: Role;
  /** The calling service of the mesh, for kinds peer and delegated. */
  readonly peer?: ServiceName;
  /** On whose behalf a peer acts, for kind delegated: the original caller's kind and id. */
  readonly delegate?: { readonly kind: CallerKind; readonly id: string };
  /** The organisation's plan, as a number of octomesh.identity.v1.Plan; 0 where unknown. */
  readonly plan: number;
  /** When the credential was issued, ms since the epoch; 0 where it does not say. */
  readonly issuedMs: number;
  /** When the credential lapses, ms since the epoch; absent where it does not. */
  readonly expiresMs?: number;
  /**
   * Whether the credential says that it is of a test organisation. API keys, read tokens, partner keys, bootstrap tokens
   * and licences do; false for all other kinds, whose credential does not say.
   */
  readonly sandbox: boolean;
  /** True client address, IPv4 or IPv6 in text; "" where there is none (background work). */
  readonly address: string;
}

const wireKinds: Record<CallerKind, WireCallerKind> = {
  public: WireCallerKind.PUBLIC,
  session: WireCallerKind.SESSION,
  api_key: WireCallerKind.API_KEY,
  device: WireCallerKind.DEVICE,
  bootstrap: WireCallerKind.BOOTSTRAP,
  edge: WireCallerKind.EDGE,
  partner: WireCallerKind.PARTNER,
  read_token: WireCallerKind.READ_TOKEN,
  peer: WireCallerKind.PEER,
  delegated: WireCallerKind.DELEGATED,
  system: WireCallerKind.SYSTEM,
};

const kinds = new Map<WireCallerKind, CallerKind>(
  Object.entries(wireKinds).map(([kind, wire]) => [wire, kind as CallerKind]),
);

/** The contract's enum value of a caller kind. */
export function wireKindOf(kind: CallerKind): WireCallerKind {
  return wireKinds[kind];
}

/** The caller kind of a contract's enum value; undefined for UNSPECIFIED and unknown ones. */
export function kindOfWire(kind: WireCallerKind): CallerKind | undefined {
  return kinds.get(kind);
}

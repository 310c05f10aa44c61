import type { ColumnType, Generated, JSONColumnType, Transaction } from "kysely";

/** The tables of the service, as `migrations/` makes them. What each is for stands there. */
export interface IdentitySchema {
  organizations: OrganizationTable;
  set_up_codes: { digest: Buffer; create_time: Date };
  members: MemberTable;
  sessions: SessionTable;
  device_credentials: DeviceCredentialTable;
  refresh_tokens: { org_id: string; digest: Buffer; family_id: string; generation: number };
  api_keys: ApiKeyTable;
  bootstrap_tokens: BootstrapTokenTable;
  read_tokens: ReadTokenTable;
  license_keys: LicenseKeyTable;
  partner_keys: PartnerKeyTable;
  edge_certificates: EdgeCertificateTable;
  edge_signing_keys: EdgeSigningKeyTable;
  embedded_edges: EmbeddedEdgeTable;
  license_signing_keys: LicenseSigningKeyTable;
  edge_authorities: EdgeAuthorityTable;
  revocations: RevocationTable;
  revocation_subscribers: { id: string; peer: string; cursor: string; lease_expire_time: Date };
  signing_keys: SigningKeyTable;
  erasures: { org_id: string; service: string; erased: JSONColumnType<Record<string, number>>; remaining: bigint };
}

/** Organisations. Enum columns hold the contract's numbers. */
export interface OrganizationTable {
  org_id: string;
  display_name: string;
  environment: number;
  paired_id: string;
  plan: number;
  device_token_expiry_ms: ColumnType<bigint, bigint | number, bigint | number>;
  revision: Generated<number>;
  create_time: Date;
  update_time: Date;
  delete_time: Date | null;
}

/** Members. */
export interface MemberTable {
  org_id: string;
  id: string;
  email: string;
  role: number;
  state: number;
  create_time: Date;
  update_time: Date;
  invitation_digest: Buffer | null;
  invitation_expire_time: Date | null;
}

/** What sessions and device credentials have in common: a family of refresh tokens. */
export interface FamilyColumns {
  org_id: string;
  id: string;
  generation: number;
  rotate_time: Date;
  expire_time: Date;
  issue_time: Date;
  create_time: Date;
  revoke_time: Date | null;
  revoke_cause: Generated<string>;
}

/** Members' sessions. */
export interface SessionTable extends FamilyColumns {
  member_id: string;
}

/** Families of device credentials. */
export interface DeviceCredentialTable extends FamilyColumns {
  device_id: string;
  registration_id: string;
  bootstrap_token_id: string;
  client_key_digest: Buffer | null;
  access_expire_time: Date;
}

/** API keys. */
export interface ApiKeyTable {
  org_id: string;
  id: string;
  name: string;
  prefix: string;
  digest: Buffer;
  scopes: number[];
  creator_id: string;
  create_time: Date;
  expire_time: Date | null;
  last_use_time: Date | null;
  revoke_time: Date | null;
}

/** Bootstrap and enrolment tokens. */
export interface BootstrapTokenTable {
  org_id: string;
  id: string;
  kind: number;
  name: string;
  digest: Buffer;
  max_uses: number;
  uses: Generated<number>;
  allowed_identifiers: string[];
  approval_required: boolean;
  group_ids: string[];
  create_time: Date;
  expire_time: Date;
  revoke_time: Date | null;
}

/** Read tokens. */
export interface ReadTokenTable {
  org_id: string;
  id: string;
  digest: Buffer;
  scopes: number[];
  creator_id: string;
  create_time: Date;
  expire_time: Date;
  revoke_time: Date | null;
}

/** Licences of edges. */
export interface LicenseKeyTable {
  org_id: string;
  id: string;
  name: string;
  client_certificate: number;
  create_time: Date;
  expire_time: Date;
  revoke_time: Date | null;
}

/** Partner keys. */
export interface PartnerKeyTable {
  org_id: string;
  id: string;
  name: string;
  prefix: string;
  digest: Buffer;
  create_time: Date;
  last_use_time: Date | null;
  revoke_time: Date | null;
}

/** Client certificates of edges. */
export interface EdgeCertificateTable {
  org_id: string;
  id: string;
  license_key_id: string;
  spiffe_id: string;
  serial: string;
  certificate_pem: string;
  create_time: Date;
  expire_time: Date;
  revoke_time: Date | null;
}

/** Public halves of edges' signing keys. */
export interface EdgeSigningKeyTable {
  org_id: string;
  id: string;
  license_key_id: string;
  public_key: Buffer;
  create_time: Date;
  revoke_time: Date | null;
}

/** Kits of the deployment's own edge that are not revoked yet. */
export interface EmbeddedEdgeTable {
  org_id: string;
  license_key_id: string;
  certificate_id: string;
  signing_key_id: string;
  provision_time: Date;
}

/** Keys that sign licences. */
export interface LicenseSigningKeyTable {
  kid: string;
  public_key: Buffer;
  sealed_private_key: Buffer;
  create_time: Date;
  activate_time: Date;
}

/** The edges' certificate authorities. */
export interface EdgeAuthorityTable {
  id: string;
  certificate_pem: string;
  sealed_private_key: Buffer;
  create_time: Date;
  expire_time: Date;
}

/** Revocations that still matter. */
export interface RevocationTable {
  org_id: string;
  subject: number;
  id: string;
  revoke_time: Date;
  forget_time: Date;
  digest: Buffer | null;
}

/** Signing keys. */
export interface SigningKeyTable {
  kid: string;
  public_key: JSONColumnType<PublicKeyJwk>;
  sealed_private_key: Buffer;
  create_time: Date;
  activate_time: Date;
}

/** Public half of an ES256 key (RFC 7517, RFC 7518 section 6.2). */
export interface PublicKeyJwk {
  kty: "EC";
  crv: "P-256";
  x: string;
  y: string;
}

/** A transaction of the service's database. */
export type IdentityTransaction = Transaction<IdentitySchema>;

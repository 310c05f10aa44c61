-- Licences of edges. The licence itself is signed and not stored.
create table license_keys (
  org_id text not null,
  id text not null,
  name text not null check (length(name) between 1 and 100),
  client_certificate smallint not null check (client_certificate between 1 and 3),
  create_time timestamptz not null,
  expire_time timestamptz not null,
  revoke_time timestamptz,
  primary key (org_id, id)
);
create unique index license_keys_id on license_keys (id);
create index license_keys_order on license_keys (org_id, create_time desc, id desc);
select mesh.tenant_table('license_keys');
select mesh.system_access('license_keys', 'select');

-- Keys by which partners' backends read verdicts.
create table partner_keys (
  org_id text not null,
  id text not null,
  name text not null check (length(name) between 1 and 100),
  prefix text not null,
  digest bytea not null check (octet_length(digest) = 32),
  create_time timestamptz not null,
  last_use_time timestamptz,
  revoke_time timestamptz,
  primary key (org_id, id)
);
create unique index partner_keys_digest on partner_keys (digest);
create index partner_keys_order on partner_keys (org_id, create_time desc, id desc);
select mesh.tenant_table('partner_keys');
select mesh.system_access('partner_keys', 'select');

-- Client certificates of edges.
create table edge_certificates (
  org_id text not null,
  id text not null,
  license_key_id text not null,
  spiffe_id text not null,
  serial text not null,
  certificate_pem text not null check (length(certificate_pem) <= 16384),
  create_time timestamptz not null,
  expire_time timestamptz not null,
  revoke_time timestamptz,
  primary key (org_id, id)
);
create unique index edge_certificates_serial on edge_certificates (serial);
create index edge_certificates_license on edge_certificates (org_id, license_key_id);
create index edge_certificates_order on edge_certificates (org_id, create_time desc, id desc);
create index edge_certificates_expire on edge_certificates (expire_time);
select mesh.tenant_table('edge_certificates');
select mesh.system_access('edge_certificates', 'select, delete');

-- Public halves of the keys with which edges sign. A key belongs to one licence, whichever organisation's.
create table edge_signing_keys (
  org_id text not null,
  id text not null,
  license_key_id text not null,
  public_key bytea not null check (octet_length(public_key) = 32),
  create_time timestamptz not null,
  revoke_time timestamptz,
  primary key (org_id, id)
);
create unique index edge_signing_keys_id on edge_signing_keys (id);
create unique index edge_signing_keys_public on edge_signing_keys (public_key);
create index edge_signing_keys_license on edge_signing_keys (org_id, license_key_id);
create index edge_signing_keys_order on edge_signing_keys (org_id, create_time desc, id desc);
select mesh.tenant_table('edge_signing_keys');
select mesh.system_access('edge_signing_keys', 'select');

-- Kits that were made for the deployment's own edge, until they are revoked: the one in use, and those that it replaced
-- or that never arrived.
create table embedded_edges (
  org_id text not null,
  license_key_id text not null,
  certificate_id text not null,
  signing_key_id text not null,
  provision_time timestamptz not null,
  primary key (org_id, license_key_id)
);
select mesh.tenant_table('embedded_edges');
select mesh.system_access('embedded_edges', 'select');

-- Keys that sign licences, the private halves sealed by the master key.
create table license_signing_keys (
  kid text primary key check (length(kid) between 1 and 64),
  public_key bytea not null check (octet_length(public_key) = 32),
  sealed_private_key bytea not null,
  create_time timestamptz not null,
  activate_time timestamptz not null
);
select mesh.system_access('license_signing_keys', 'select, insert');

-- The edges' certificate authorities, their keys sealed by the master key.
create table edge_authorities (
  id text primary key,
  certificate_pem text not null,
  sealed_private_key bytea not null,
  create_time timestamptz not null,
  expire_time timestamptz not null
);
select mesh.system_access('edge_authorities', 'select, insert');

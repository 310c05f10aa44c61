-- Organisations, live ones and their sandboxes. A row with delete_time is being erased and issues nothing any more.
create table organizations (
  org_id text primary key,
  display_name text not null check (length(display_name) between 1 and 100),
  environment smallint not null check (environment in (1, 2)),
  paired_id text not null,
  plan smallint not null check (plan between 1 and 3),
  device_token_expiry_ms bigint not null check (device_token_expiry_ms between 300000 and 2592000000),
  revision integer not null default 1,
  create_time timestamptz not null,
  update_time timestamptz not null,
  delete_time timestamptz
);
select mesh.tenant_table('organizations');
select mesh.system_access('organizations', 'select, insert, update (delete_time)');

-- Codes that create the first organisation. None is left once there is one.
create table set_up_codes (
  digest bytea primary key check (octet_length(digest) = 32),
  create_time timestamptz not null
);
select mesh.system_access('set_up_codes', 'select, insert, delete');

create table members (
  org_id text not null,
  id text not null,
  email text not null check (email = lower(email) and length(email) between 3 and 254),
  role smallint not null check (role between 1 and 3),
  state smallint not null check (state in (1, 2)),
  create_time timestamptz not null,
  update_time timestamptz not null,
  invitation_digest bytea check (octet_length(invitation_digest) = 32),
  invitation_expire_time timestamptz,
  primary key (org_id, id),
  unique (org_id, email),
  check ((invitation_digest is null) = (invitation_expire_time is null))
);
create unique index members_invitation on members (invitation_digest);
create index members_order on members (org_id, create_time, id);
select mesh.tenant_table('members');
select mesh.system_access('members', 'select, insert');

-- Members' sessions. issue_time is that of the newest access token: a revocation never falls behind it.
create table sessions (
  org_id text not null,
  id text not null,
  member_id text not null,
  generation integer not null check (generation >= 1),
  rotate_time timestamptz not null,
  expire_time timestamptz not null,
  issue_time timestamptz not null,
  create_time timestamptz not null,
  revoke_time timestamptz,
  revoke_cause text not null default '' check (length(revoke_cause) <= 64),
  primary key (org_id, id)
);
create index sessions_member on sessions (org_id, member_id);
create index sessions_expire on sessions (expire_time);
select mesh.tenant_table('sessions');
select mesh.system_access('sessions', 'select, insert, delete');

-- Families of device credentials: one per accepted registration, of which at most one per device is good.
create table device_credentials (
  org_id text not null,
  id text not null,
  device_id text not null,
  registration_id text not null check (length(registration_id) between 1 and 64),
  bootstrap_token_id text not null,
  client_key_digest bytea check (octet_length(client_key_digest) = 32),
  generation integer not null check (generation >= 1),
  rotate_time timestamptz not null,
  expire_time timestamptz not null,
  issue_time timestamptz not null,
  access_expire_time timestamptz not null,
  create_time timestamptz not null,
  revoke_time timestamptz,
  revoke_cause text not null default '' check (length(revoke_cause) <= 64),
  primary key (org_id, id),
  unique (org_id, device_id, registration_id)
);
create index device_credentials_expire on device_credentials (expire_time);
select mesh.tenant_table('device_credentials');
select mesh.system_access('device_credentials', 'select, delete');

-- Digests of the refresh tokens of sessions and devices: the newest 64 generations of each family, by which a used one
-- is recognised when it comes back.
create table refresh_tokens (
  org_id text not null,
  digest bytea not null check (octet_length(digest) = 32),
  family_id text not null,
  generation integer not null,
  primary key (org_id, digest),
  unique (org_id, family_id, generation)
);
create unique index refresh_tokens_digest on refresh_tokens (digest);
select mesh.tenant_table('refresh_tokens');
select mesh.system_access('refresh_tokens', 'select, insert, delete');

create table api_keys (
  org_id text not null,
  id text not null,
  name text not null check (length(name) between 1 and 100),
  prefix text not null,
  digest bytea not null check (octet_length(digest) = 32),
  scopes integer[] not null,
  creator_id text not null,
  create_time timestamptz not null,
  expire_time timestamptz,
  last_use_time timestamptz,
  revoke_time timestamptz,
  primary key (org_id, id)
);
create unique index api_keys_digest on api_keys (digest);
create index api_keys_order on api_keys (org_id, create_time desc, id desc);
select mesh.tenant_table('api_keys');
select mesh.system_access('api_keys', 'select');

create table bootstrap_tokens (
  org_id text not null,
  id text not null,
  kind smallint not null check (kind in (1, 2)),
  name text not null check (length(name) <= 100),
  digest bytea not null check (octet_length(digest) = 32),
  max_uses integer not null check (max_uses between 1 and 1000000),
  uses integer not null default 0 check (uses between 0 and max_uses),
  allowed_identifiers text[] not null,
  approval_required boolean not null,
  group_ids text[] not null,
  create_time timestamptz not null,
  expire_time timestamptz not null,
  revoke_time timestamptz,
  primary key (org_id, id)
);
create unique index bootstrap_tokens_digest on bootstrap_tokens (digest);
create index bootstrap_tokens_order on bootstrap_tokens (org_id, create_time desc, id desc);
select mesh.tenant_table('bootstrap_tokens');
select mesh.system_access('bootstrap_tokens', 'select');

create table read_tokens (
  org_id text not null,
  id text not null,
  digest bytea not null check (octet_length(digest) = 32),
  scopes integer[] not null,
  creator_id text not null,
  create_time timestamptz not null,
  expire_time timestamptz not null,
  revoke_time timestamptz,
  primary key (org_id, id)
);
create unique index read_tokens_digest on read_tokens (digest);
create index read_tokens_creator on read_tokens (org_id, creator_id);
create index read_tokens_expire on read_tokens (expire_time);
select mesh.tenant_table('read_tokens');
select mesh.system_access('read_tokens', 'select, delete');

-- What was revoked, until it cannot matter any more. The row of an erased organisation outlives the organisation:
-- tokens that were signed for it must stay refused.
create table revocations (
  org_id text not null,
  subject smallint not null,
  id text not null,
  revoke_time timestamptz not null,
  forget_time timestamptz not null,
  digest bytea,
  primary key (org_id, subject, id)
);
create index revocations_forget on revocations (forget_time);
select mesh.tenant_table('revocations');
select mesh.system_access('revocations', 'select, insert, update, delete');

-- Who follows revocations, and how far each has come.
create table revocation_subscribers (
  id text primary key check (length(id) between 1 and 64),
  peer text not null,
  cursor text not null check (length(cursor) <= 64),
  lease_expire_time timestamptz not null
);
select mesh.system_access('revocation_subscribers', 'select, insert, update, delete');

-- Keys that sign access tokens, the private halves sealed by the master key. The newest one in force signs.
create table signing_keys (
  kid text primary key check (length(kid) between 1 and 64),
  public_key jsonb not null,
  sealed_private_key bytea not null,
  create_time timestamptz not null,
  activate_time timestamptz not null
);
select mesh.system_access('signing_keys', 'select, insert, delete');

-- What each service erased of an organisation that is being deleted, so that a resumed deletion proves the whole.
create table erasures (
  org_id text not null,
  service text not null check (length(service) <= 32),
  erased jsonb not null,
  remaining bigint not null,
  primary key (org_id, service)
);
select mesh.tenant_table('erasures');

-- Devices, their groups, their presence, and what they say they run.

create table devices (
  org_id text not null,
  id text not null check (id ~ '^dev_[a-z2-7]{26}$'),
  device_identifier text not null check (length(device_identifier) between 1 and 128),
  display_name text not null default '' check (length(display_name) <= 100),
  platform smallint not null default 0,
  os_version text not null default '' check (length(os_version) <= 64),
  sdk_version text not null default '' check (length(sdk_version) <= 64),
  app_version text not null default '' check (length(app_version) <= 64),
  manufacturer text not null default '' check (length(manufacturer) <= 64),
  hardware_model text not null default '' check (length(hardware_model) <= 64),
  labels jsonb not null default '{}' check (jsonb_typeof(labels) = 'object'),
  -- 'reserved': an identifier whose first registration is under way. No device yet, and invisible outside registration.
  state text not null check (state in ('reserved', 'awaiting_approval', 'active', 'revoked')),
  reenrolment_granted boolean not null default false,
  -- The registration that holds: which one, by which token or key, with which client key (a keyed digest, or null).
  registration_id text,
  registration_token_id text,
  registration_key_digest bytea,
  registration_time timestamptz,
  -- A registration under way: identity may have issued its credential, nobody has been answered.
  pending_registration_id text,
  pending_token_id text,
  pending_key_digest bytea,
  pending_time timestamptz,
  -- Counts changes: the etag.
  revision bigint not null default 1,
  -- Whole milliseconds: pages continue by them.
  create_time timestamptz not null,
  update_time timestamptz not null,
  primary key (org_id, id),
  constraint devices_identifier unique (org_id, device_identifier),
  check (state <> 'reserved' or (pending_registration_id is not null and registration_id is null)),
  check ((pending_registration_id is null) = (pending_time is null))
);
create index devices_newest on devices (org_id, create_time desc, id desc);
create index devices_reserved on devices (pending_time) where state = 'reserved';
select mesh.tenant_table('devices');
-- Reservations that were never completed are cleared away without an organisation at hand.
select mesh.system_access('devices', 'select, delete');

-- Presence changes with every heartbeat, so it lives apart from the device row.
create table device_presence (
  org_id text not null,
  device_id text not null,
  boot_id text not null default '',
  sequence bigint not null default -1,
  -- Boots that the present one came after, newest first, and how far each had counted: [["boot id", "sequence"], …].
  earlier_boots jsonb not null default '[]' check (jsonb_typeof(earlier_boots) = 'array'),
  last_heartbeat_time timestamptz,
  -- Boots that contradict each other, and registrations of a taken identifier that were refused.
  clone_signs integer not null default 0,
  primary key (org_id, device_id),
  foreign key (org_id, device_id) references devices (org_id, id) on delete cascade
) with (fillfactor = 70);
select mesh.tenant_table('device_presence');

create table device_groups (
  org_id text not null,
  id text not null check (id ~ '^grp_[a-z2-7]{26}$'),
  display_name text not null check (length(display_name) between 1 and 100),
  description text not null default '' check (length(description) <= 500),
  revision bigint not null default 1,
  create_time timestamptz not null,
  update_time timestamptz not null,
  primary key (org_id, id),
  constraint device_groups_name unique (org_id, display_name)
);
select mesh.tenant_table('device_groups');

create table device_group_members (
  org_id text not null,
  group_id text not null,
  device_id text not null,
  primary key (org_id, group_id, device_id),
  foreign key (org_id, group_id) references device_groups (org_id, id) on delete cascade,
  foreign key (org_id, device_id) references devices (org_id, id) on delete cascade
);
create index device_group_members_device on device_group_members (org_id, device_id);
select mesh.tenant_table('device_group_members');

-- The last account that each device gave of what it runs; its models are rows of observed_models.
create table observed_states (
  org_id text not null,
  device_id text not null,
  boot_id text not null default '',
  sequence bigint not null default -1,
  earlier_boots jsonb not null default '[]' check (jsonb_typeof(earlier_boots) = 'array'),
  -- Null only between the two statements that make a row.
  update_time timestamptz,
  primary key (org_id, device_id),
  foreign key (org_id, device_id) references devices (org_id, id) on delete cascade
) with (fillfactor = 70);
select mesh.tenant_table('observed_states');

create table observed_models (
  org_id text not null,
  device_id text not null,
  model_id text not null,
  version_id text not null,
  state smallint not null,
  failure smallint not null default 0,
  previous_version_id text not null default '',
  primary key (org_id, device_id, model_id, version_id),
  foreign key (org_id, device_id) references devices (org_id, id) on delete cascade
);
create index observed_models_version on observed_models (org_id, model_id, version_id, state);
select mesh.tenant_table('observed_models');

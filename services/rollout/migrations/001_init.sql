-- Models, versions, artifacts and rollouts.

create table models (
  org_id text not null,
  id text not null,
  name text collate "C" not null check (name ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
  description text not null check (char_length(description) <= 1000),
  create_time timestamptz not null,
  update_time timestamptz not null,
  revision bigint not null default 1,
  primary key (org_id, id)
);
create unique index models_name on models (org_id, name);
select mesh.tenant_table('models');

-- Verified bytes. touch_time is when somebody last asked for them: what nothing refers to is removed a while after.
create table artifacts (
  org_id text not null,
  id text not null,
  sha256 bytea not null check (octet_length(sha256) = 32),
  size_bytes bigint not null check (size_bytes > 0),
  create_time timestamptz not null,
  touch_time timestamptz not null,
  primary key (org_id, id)
);
create unique index artifacts_sha256 on artifacts (org_id, sha256);
create index artifacts_touch_time on artifacts (touch_time);
select mesh.tenant_table('artifacts');
select mesh.system_access('artifacts', 'select, delete');

-- stored_bytes counts what is on stable storage: an upload goes on there, whatever a file may hold beyond.
create table artifact_uploads (
  org_id text not null,
  id text not null,
  sha256 bytea not null check (octet_length(sha256) = 32),
  size_bytes bigint not null check (size_bytes > 0),
  stored_bytes bigint not null default 0 check (stored_bytes between 0 and size_bytes),
  verified boolean not null default false,
  artifact_id text,
  create_time timestamptz not null,
  expire_time timestamptz not null,
  primary key (org_id, id),
  foreign key (org_id, artifact_id) references artifacts (org_id, id) on delete cascade
);
create unique index artifact_uploads_open on artifact_uploads (org_id, sha256, size_bytes) where artifact_id is null;
create index artifact_uploads_artifact on artifact_uploads (org_id, artifact_id) where artifact_id is not null;
create index artifact_uploads_expire_time on artifact_uploads (expire_time);
select mesh.tenant_table('artifact_uploads');
select mesh.system_access('artifact_uploads', 'select, delete');

-- Digests whose bytes are to be removed from the blob store, unless they have come back meanwhile.
create table blob_garbage (
  org_id text not null,
  sha256 bytea not null check (octet_length(sha256) = 32),
  create_time timestamptz not null,
  primary key (org_id, sha256)
);
select mesh.tenant_table('blob_garbage');
select mesh.system_access('blob_garbage', 'select, insert, update, delete');

-- Ed25519 keys that sign manifests. The private key is sealed with the master key, bound to organisation and id.
create table manifest_keys (
  org_id text not null,
  id text not null,
  public_key bytea not null check (octet_length(public_key) = 32),
  sealed_private_key bytea not null check (octet_length(sealed_private_key) <= 1024),
  create_time timestamptz not null,
  retire_time timestamptz,
  primary key (org_id, id)
);
create unique index manifest_keys_current on manifest_keys (org_id) where retire_time is null;
select mesh.tenant_table('manifest_keys');

create table model_versions (
  org_id text not null,
  id text not null,
  sequence bigint generated always as identity,
  model_id text not null,
  version text not null check (octet_length(version) between 5 and 64),
  artifact_id text not null,
  format integer not null check (format > 0),
  state text not null default 'published' check (state in ('published', 'deprecated')),
  manifest bytea not null check (octet_length(manifest) <= 65536),
  signature bytea not null check (octet_length(signature) = 64),
  key_id text not null,
  release_notes text not null check (char_length(release_notes) <= 4000),
  create_time timestamptz not null,
  deprecate_time timestamptz,
  primary key (org_id, id),
  foreign key (org_id, model_id) references models (org_id, id) on delete cascade,
  foreign key (org_id, artifact_id) references artifacts (org_id, id),
  foreign key (org_id, key_id) references manifest_keys (org_id, id)
);
create unique index model_versions_version on model_versions (org_id, model_id, version);
create index model_versions_newest on model_versions (org_id, model_id, sequence desc);
create index model_versions_artifact on model_versions (org_id, artifact_id);
select mesh.tenant_table('model_versions');
select mesh.system_access('model_versions', 'select');

-- What a version is never changes; whether new rollouts may use it does.
create function refuse_version_change() returns trigger language plpgsql as $$
begin
  if (old.model_id, old.version, old.artifact_id, old.format, old.manifest, old.signature, old.key_id,
      old.release_notes, old.create_time)
     is distinct from
     (new.model_id, new.version, new.artifact_id, new.format, new.manifest, new.signature, new.key_id,
      new.release_notes, new.create_time) then
    raise exception 'a model version is immutable';
  end if;
  return new;
end $$;
create trigger model_versions_immutable before update on model_versions
  for each row execute function refuse_version_change();

-- One row per organisation, raised with every change of what its rollouts decide. Its lock puts those changes in order.
create table rollout_revisions (
  org_id text primary key,
  revision bigint not null
);
select mesh.tenant_table('rollout_revisions');

-- No row per device: a rollout of any size is one row. target_key is the sorted group ids, '' for all devices.
create table rollouts (
  org_id text not null,
  id text not null,
  sequence bigint generated always as identity,
  model_id text not null,
  version_id text not null,
  group_ids text[] not null,
  target_key text not null check (octet_length(target_key) <= 2048),
  plan jsonb not null,
  state text not null check (state in ('draft', 'awaiting_approval', 'scheduled', 'running', 'paused', 'rolling_back',
    'completed', 'rolled_back', 'aborted')),
  stage_index integer not null default 0,
  percentage_thousandths integer not null default 0 check (percentage_thousandths between 0 and 100000),
  control_thousandths integer not null check (control_thousandths between 0 and 50000),
  salt text not null check (octet_length(salt) between 16 and 64),
  priority integer not null check (priority between 0 and 1000),
  prior_version_id text,
  create_time timestamptz not null,
  update_time timestamptz not null,
  start_time timestamptz,
  -- When the present stage began, or went on after a pause.
  stage_time timestamptz,
  end_time timestamptz,
  -- When the background loop has to look at it; null where time alone changes nothing.
  due_time timestamptz,
  revision bigint not null default 1,
  primary key (org_id, id),
  foreign key (org_id, model_id) references models (org_id, id),
  foreign key (org_id, version_id) references model_versions (org_id, id)
);
create unique index rollouts_one_active on rollouts (org_id, model_id, target_key)
  where state in ('awaiting_approval', 'scheduled', 'running', 'paused', 'rolling_back');
create index rollouts_newest on rollouts (org_id, sequence desc);
create index rollouts_model on rollouts (org_id, model_id, sequence desc);
create index rollouts_version on rollouts (org_id, version_id);
create index rollouts_completed on rollouts (org_id, model_id, target_key, end_time desc) where state = 'completed';
create index rollouts_due on rollouts (due_time) where due_time is not null;
select mesh.tenant_table('rollouts');
select mesh.system_access('rollouts', 'select');

create table rollout_transitions (
  org_id text not null,
  id text not null,
  sequence bigint generated always as identity,
  rollout_id text not null,
  from_state text not null,
  to_state text not null,
  percentage_thousandths integer not null,
  actor_kind text not null,
  actor_id text not null,
  reason text not null check (char_length(reason) <= 256),
  create_time timestamptz not null,
  primary key (org_id, id),
  foreign key (org_id, rollout_id) references rollouts (org_id, id) on delete cascade
);
create index rollout_transitions_rollout on rollout_transitions (org_id, rollout_id, sequence);
select mesh.tenant_table('rollout_transitions');

-- Batches that were taken, by which a repetition is known. Their rows outlive every report that a repetition could
-- still hold within the window of measure times, so no batch is ever counted twice.
create table batches (
  org_id text not null,
  device_id text not null check (length(device_id) <= 64),
  boot_id text not null check (length(boot_id) <= 64),
  sequence bigint not null check (sequence >= 0),
  accepted integer not null,
  dropped_fields integer not null,
  receive_time timestamptz not null,
  primary key (org_id, device_id, boot_id, sequence)
);
create index batches_receive_time on batches (receive_time);
select mesh.tenant_table('batches');
select mesh.system_access('batches', 'select, delete');

-- Rollups: what devices reported, summed by organisation, minute, model version, cohort and slice. Each row is a sum
-- that an upsert adds to under its row lock, so concurrent flushes lose nothing. `dimension` is the kind's own key:
-- the operation, metric or step; 0 for health.
create table health_rollups (
  org_id text not null,
  minute timestamptz not null,
  model_id text not null,
  version_id text not null,
  rollout_id text not null,
  cohort smallint not null,
  slice smallint not null check (slice between 0 and 31),
  dimension smallint not null,
  reports bigint not null,
  devices bigint not null,
  crashes bigint not null,
  jobs_completed bigint not null,
  jobs_failed bigint not null,
  battery_sum bigint not null,
  battery_reports bigint not null,
  hot_reports bigint not null,
  primary key (org_id, minute, model_id, version_id, rollout_id, cohort, slice, dimension)
);
create index health_rollups_minute on health_rollups (minute);
select mesh.tenant_table('health_rollups');
select mesh.system_access('health_rollups', 'select, delete');

-- `bins` and `counts` are the DDSketch: how many measurements fell into which bin of the logarithmic mapping with a
-- relative accuracy of 1 %, bins ascending. Measurements below a microsecond are in `zeros` instead.
create table latency_rollups (
  org_id text not null,
  minute timestamptz not null,
  model_id text not null,
  version_id text not null,
  rollout_id text not null,
  cohort smallint not null,
  slice smallint not null check (slice between 0 and 31),
  dimension smallint not null,
  count bigint not null,
  errors bigint not null,
  sum_ms double precision not null,
  max_ms double precision not null,
  zeros bigint not null,
  bins smallint[] not null,
  counts bigint[] not null check (cardinality(counts) = cardinality(bins)),
  primary key (org_id, minute, model_id, version_id, rollout_id, cohort, slice, dimension)
);
create index latency_rollups_minute on latency_rollups (minute);
select mesh.tenant_table('latency_rollups');
select mesh.system_access('latency_rollups', 'select, delete');

create table quality_rollups (
  org_id text not null,
  minute timestamptz not null,
  model_id text not null,
  version_id text not null,
  rollout_id text not null,
  cohort smallint not null,
  slice smallint not null check (slice between 0 and 31),
  dimension smallint not null,
  reports bigint not null,
  samples bigint not null,
  weighted_sum double precision not null,
  min double precision not null,
  max double precision not null,
  primary key (org_id, minute, model_id, version_id, rollout_id, cohort, slice, dimension)
);
create index quality_rollups_minute on quality_rollups (minute);
select mesh.tenant_table('quality_rollups');
select mesh.system_access('quality_rollups', 'select, delete');

-- `bytes` is numeric: the sum of what devices claim must never overflow, for that would fail everybody's flush.
create table progress_rollups (
  org_id text not null,
  minute timestamptz not null,
  model_id text not null,
  version_id text not null,
  rollout_id text not null,
  cohort smallint not null,
  slice smallint not null check (slice between 0 and 31),
  dimension smallint not null,
  count bigint not null,
  bytes numeric not null,
  duration_seconds double precision not null,
  timed bigint not null,
  primary key (org_id, minute, model_id, version_id, rollout_id, cohort, slice, dimension)
);
create index progress_rollups_minute on progress_rollups (minute);
select mesh.tenant_table('progress_rollups');
select mesh.system_access('progress_rollups', 'select, delete');

-- The runtime's own tables, in the schema of every service.

-- Events for watchers (outbox.ts). A cursor is (xid, id): a transaction's events become readable when every older
-- transaction has ended, so that no event can appear behind a cursor.
create table outbox (
  xid xid8 not null default pg_current_xact_id(),
  id bigint generated always as identity,
  topic text not null check (topic ~ '^[a-z][a-z0-9._-]{0,63}$'),
  org_id text not null,
  key text not null check (octet_length(key) <= 512),
  payload bytea not null check (octet_length(payload) <= 1048576),
  time timestamptz not null default clock_timestamp(),
  primary key (topic, xid, id)
);
create index outbox_time on outbox (time);
alter table outbox enable row level security;
alter table outbox force row level security;
create policy app on outbox for insert to :schema_app
  with check (org_id = nullif(current_setting('app.org_id', true), ''));
create policy ingest on outbox for insert to :schema_ingest
  with check (org_id = any (array(select unnest(string_to_array(current_setting('app.org_ids', true), ',')))));
grant insert (topic, org_id, key, payload) on outbox to :schema_app, :schema_ingest, :schema_system;
select mesh.system_access('outbox', 'select, delete');

-- How far each topic has been trimmed: a cursor before this point has lost events.
create table outbox_trimmed (
  topic text primary key,
  xid xid8 not null,
  id bigint not null
);
select mesh.system_access('outbox_trimmed', 'select, insert, update');

-- Audit events on their way to identity's log (DESIGN 8.2). xid and sequence give the reader the same gap-free order.
create table audit_outbox (
  id text primary key,
  xid xid8 not null default pg_current_xact_id(),
  sequence bigint generated always as identity,
  org_id text not null,
  time timestamptz not null,
  action text not null,
  outcome text not null,
  actor_kind text not null,
  actor_id text not null,
  credential_id text not null,
  delegate_kind text not null,
  delegate_id text not null,
  resource_type text not null,
  resource_id text not null,
  resource_name text not null,
  request_id text not null,
  address text not null,
  metadata jsonb not null
);
create index audit_outbox_order on audit_outbox (xid, sequence);
alter table audit_outbox enable row level security;
alter table audit_outbox force row level security;
-- ON CONFLICT needs to see the id it conflicts with; nothing else of the table is readable to the app.
create policy app on audit_outbox for insert to :schema_app
  with check (org_id = nullif(current_setting('app.org_id', true), ''));
create policy app_id on audit_outbox for select to :schema_app
  using (org_id = nullif(current_setting('app.org_id', true), ''));
grant insert (id, org_id, time, action, outcome, actor_kind, actor_id, credential_id, delegate_kind, delegate_id,
  resource_type, resource_id, resource_name, request_id, address, metadata) on audit_outbox to :schema_app, :schema_system;
grant select (id) on audit_outbox to :schema_app;
select mesh.system_access('audit_outbox', 'select, delete');

-- Singleton leases (lease.ts).
create table leases (
  name text primary key check (octet_length(name) between 1 and 200),
  holder text not null,
  token bigint not null,
  expires timestamptz not null
);
select mesh.system_access('leases', 'select, insert, update');

-- Says whether a fencing token is still the newest of its lease and unexpired, and keeps it so until the transaction
-- ends. Open to the app and ingest roles, which cannot see the table.
create function fence(lease_name text, lease_token bigint) returns boolean
language sql security definer set search_path = :schema, pg_temp as $$
  select exists (
    select from leases
    where name = lease_name and token = lease_token and expires > clock_timestamp()
    for share
  )
$$;
revoke all on function fence(text, bigint) from public;
grant execute on function fence(text, bigint) to :schema_app, :schema_ingest, :schema_system;

-- Answers of mutations by request id (idempotency.ts, DESIGN 8.15).
create table idempotency (
  org_id text not null,
  caller text not null,
  method text not null,
  request_id text not null,
  digest bytea not null,
  answer bytea not null,
  time timestamptz not null default clock_timestamp(),
  primary key (org_id, caller, method, request_id)
);
create index idempotency_time on idempotency (time);
select mesh.tenant_table('idempotency');
select mesh.system_access('idempotency', 'select, insert, update, delete');

-- What a migration may call. The runner puts these functions into the schema "mesh" at the start of a migration's
-- transaction and drops the schema before the commit: no other transaction ever sees it.
-- The runner replaces :schema by the service's schema, a checked identifier.
create schema mesh;

-- Makes a table of the current schema a tenant table: row-level security, forced on the owner too; the app role sees
-- and writes the rows of the one organisation in app.org_id, the ingest role those of the organisations in app.org_ids,
-- and with the setting absent or empty nobody sees anything. The primary key must begin with org_id.
create function mesh.tenant_table(table_name text) returns void language plpgsql as $$
declare
  target regclass := format('%I.%I', ':schema', table_name)::regclass;
begin
  if not exists (
    select from pg_index i
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = target and i.indisprimary and a.attname = 'org_id'
      and a.attnotnull and a.atttypid = 'text'::regtype
  ) then
    raise exception 'tenant table %: its primary key must begin with org_id text', table_name;
  end if;
  execute format('alter table %s enable row level security', target);
  execute format('alter table %s force row level security', target);
  execute format($sql$create policy app on %s for all to :schema_app
    using (org_id = nullif(current_setting('app.org_id', true), ''))
    with check (org_id = nullif(current_setting('app.org_id', true), ''))$sql$, target);
  -- The subquery is evaluated once per statement, not once per row.
  execute format($sql$create policy ingest on %s for all to :schema_ingest
    using (org_id = any (array(select unnest(string_to_array(current_setting('app.org_ids', true), ',')))))
    with check (org_id = any (array(select unnest(string_to_array(current_setting('app.org_ids', true), ',')))))$sql$,
    target);
  execute format('grant select, insert, update, delete on %s to :schema_app, :schema_ingest', target);
end $$;

-- Lets the system role, which acts for no organisation, touch a table: 'select', 'select, update (last_used)', ….
-- Grants nothing else, so keep the list as narrow as the statements of the store.
create function mesh.system_access(table_name text, privileges text) returns void language plpgsql as $$
declare
  target regclass := format('%I.%I', ':schema', table_name)::regclass;
begin
  if privileges !~ '^ *(select|insert|update|delete)( *\([a-z0-9_, ]+\))?( *, *(select|insert|update|delete)( *\([a-z0-9_, ]+\))?)* *$' then
    raise exception 'system_access on %: not a list of select, insert, update, delete: %', table_name, privileges;
  end if;
  if (select relrowsecurity from pg_class where oid = target)
     and not exists (select from pg_policy where polrelid = target and polname = 'system') then
    execute format('create policy system on %s for all to :schema_system using (true) with check (true)', target);
  end if;
  execute format('grant %s on %s to :schema_system', privileges, target);
end $$;


import pg from "pg";

/** The SQL roles of one service; the header of `database.ts` says what each may do. */
export interface ServiceRoles {
  readonly login: string;
  readonly migrator: string;
  readonly app: string;
  readonly ingest: string;
  readonly system: string;
}

/** The schema of a service: its name with `_` for `-`. Throws for a name that is not lower-case words and dashes. */
export function schemaOf(service: string): string {
  if (!/^[a-z][a-z0-9]{0,31}(-[a-z0-9]{1,16}){0,2}$/.test(service))
    throw new TypeError(`no service name: "${service}"`);
  return service.replaceAll("-", "_");
}

/** The names of a service's roles. All of them are plain identifiers that need no quoting. */
export function serviceRoles(service: string): ServiceRoles {
  const schema = schemaOf(service);
  return {
    login: schema,
    migrator: `${schema}_migrator`,
    app: `${schema}_app`,
    ingest: `${schema}_ingest`,
    system: `${schema}_system`,
  };
}

/** Passwords of the two roles that log in. */
export interface ServicePasswords {
  readonly login: string;
  readonly migrator: string;
}

/**
 * The SQL that creates (or repairs) a service's roles and its empty schema in the current database. Idempotent. Run it
 * as a role that may create roles: the runtime does for the embedded database, an operator once for every other.
 * It holds the passwords in clear: do not log it.
 */
export function serviceRolesSql(service: string, passwords: ServicePasswords): string {
  const schema = schemaOf(service);
  const { login, migrator, app, ingest, system } = serviceRoles(service);
  const create = (role: string, attributes: string) => `
do $do$ begin
  if not exists (select from pg_roles where rolname = '${role}') then create role ${role}; end if;
end $do$;
alter role ${role} with ${attributes};`;
  return `-- Roles and schema of the service ${service}.
${[app, ingest, system].map((role) => create(role, "nologin noinherit")).join("")}
${create(login, `login noinherit password ${pg.escapeLiteral(passwords.login)}`)}
${create(migrator, `login noinherit password ${pg.escapeLiteral(passwords.migrator)}`)}
grant ${app}, ${ingest}, ${system} to ${login};
alter role ${login} set search_path = ${schema};
alter role ${migrator} set search_path = ${schema};
do $do$ begin
  execute format('revoke create, temporary on database %I from public', current_database());
  execute format('grant connect on database %I to ${login}, ${migrator}', current_database());
  -- The migrator makes the schema "mesh" for the length of a migration's transaction (header of migrations.ts).
  execute format('grant create on database %I to ${migrator}', current_database());
  if not exists (select from pg_namespace where nspname = '${schema}') then
    -- A role that creates roles without being a superuser must be a member to give the schema away.
    if not (select rolsuper from pg_roles where rolname = current_user) then grant ${migrator} to current_user; end if;
    create schema ${schema} authorization ${migrator};
  end if;
end $do$;
revoke all on schema public from public;
revoke all on schema ${schema} from public;
grant usage on schema ${schema} to ${login}, ${app}, ${ingest}, ${system};
`;
}

/**
 * Creates (or repairs) the roles and the schema of a service.
 *
 * @param adminUrl a role that may create roles, in the database that the service uses
 */
export async function ensureServiceRoles(
  adminUrl: string,
  service: string,
  passwords: ServicePasswords,
): Promise<void> {
  const client = new pg.Client({ connectionString: adminUrl, connectionTimeoutMillis: 5_000 });
  client.on("error", () => {});
  await client.connect();
  try {
    // Roles belong to the whole cluster: two starts at once would trip over each other's rows.
    await client.query(
      `begin; select pg_advisory_xact_lock(${serviceRolesLock}); ${serviceRolesSql(service, passwords)}; commit`,
    );
  } finally {
    await client.end();
  }
}

/** Key of the advisory lock under which roles are made: the first bytes of "octomesh". */
const serviceRolesLock = 0x6f63746f;

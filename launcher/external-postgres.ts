import { databaseTarget, requireEncryptedTransport } from "@octomesh/mesh/database-url";
import { openMasterKey } from "@octomesh/mesh/master-key";
import { ensureServiceRoles, serviceRoles } from "@octomesh/mesh/service-roles";

/** A source of database URLs, one pair for each service. */
export interface PostgresUrls {
  urls(service: string): Promise<{ url: string; migrationUrl: string }>;
}

/**
 * Uses the database that `DATABASE_URL` names, by a role that may create roles: each service gets its own schema and
 * logins there, whose passwords derive from the master key in the state folder. Throws, naming the variable and the
 * database, where it cannot be reached or the role may not.
 */
export async function openExternalPostgres(options: {
  url: string;
  stateDir: string;
  production: boolean;
}): Promise<PostgresUrls> {
  const target = databaseTarget(options.url, "DATABASE_URL");
  if (options.production) requireEncryptedTransport(options.url, "DATABASE_URL");
  const masterKey = await openMasterKey({ stateDir: options.stateDir });
  const passwordOf = (role: string): string => masterKey.derive(`postgres role ${role}`).toString("base64url");
  const urlOf = (role: string): string => {
    const url = new URL(options.url);
    url.username = role;
    url.password = passwordOf(role);
    return url.href;
  };
  return {
    async urls(service) {
      const { login, migrator } = serviceRoles(service);
      try {
        await ensureServiceRoles(options.url, service, { login: passwordOf(login), migrator: passwordOf(migrator) });
      } catch (error) {
        throw new Error(
          `DATABASE_URL: the database ${target} cannot be used (${error instanceof Error ? error.message : error}): expected a PostgreSQL that answers, and a role that may create roles and schemas`,
          { cause: error },
        );
      }
      return { url: urlOf(login), migrationUrl: urlOf(migrator) };
    },
  };
}

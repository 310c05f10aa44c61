import type { ConnectRouter } from "@connectrpc/connect";
import { trimIdempotency } from "@octomesh/mesh/idempotency";
import { holdLease } from "@octomesh/mesh/lease";
import { notImplemented } from "@octomesh/mesh/not-implemented";
import { openOutbox } from "@octomesh/mesh/outbox";
import type { CreateService } from "@octomesh/mesh/service";
import { AuditService } from "@octomesh/proto/octomesh/audit/v1/audit_service_pb";
import { ApiKeyService } from "@octomesh/proto/octomesh/identity/v1/api_key_service_pb";
import { BootstrapTokenService } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_service_pb";
import { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { EdgeCredentialService } from "@octomesh/proto/octomesh/identity/v1/edge_credential_service_pb";
import { MemberService } from "@octomesh/proto/octomesh/identity/v1/member_service_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { ReadTokenService } from "@octomesh/proto/octomesh/identity/v1/read_token_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { type Dependencies, openDependencies } from "./dependencies.ts";
import { keepHouse, resumeErasures } from "./maintenance.ts";
import { keepEdgeProvisioned } from "./provision-edge.ts";
import { apiKeyRoutes } from "./routes/api-keys.ts";
import { bootstrapTokenRoutes } from "./routes/bootstrap-tokens.ts";
import { credentialRoutes } from "./routes/credentials.ts";
import { deviceCredentialRoutes } from "./routes/device-credentials.ts";
import { edgeCredentialRoutes } from "./routes/edge-credentials.ts";
import { memberRoutes } from "./routes/members.ts";
import { organizationRoutes } from "./routes/organizations.ts";
import { readTokenRoutes } from "./routes/read-tokens.ts";
import { sessionRoutes } from "./routes/sessions.ts";
import { tenantRoutes } from "./routes/tenants.ts";
import type { IdentitySchema } from "./schema.ts";
import { ensureSetUpCode } from "./set-up-code.ts";

/** How often signing keys are looked after, and keys that other replicas made are read. */
const keyRefreshMs = 60_000;
const housekeepingMs = 15 * 60_000;
const resumeMs = 30_000;

/**
 * The identity service: organisations, members, sessions, keys and tokens, what devices prove themselves with, and the
 * revocations of them all. Makes the first signing key, and the set-up code where there is no organisation.
 */
export const createService: CreateService = async (runtime) => {
  const { clock, log, stateDir } = runtime;
  const database = await runtime.openDatabase<IdentitySchema>(new URL("./migrations/", import.meta.url));
  const outbox = openOutbox(database, { log });
  const deps = await openDependencies(runtime, database, outbox);
  await ensureSetUpCode({ database, stateDir, now: new Date(clock.now()) });

  const stopped = new AbortController();
  const loops: Promise<void>[] = [];
  let keyTimer: NodeJS.Timeout | undefined;

  return {
    routes(router: ConnectRouter) {
      router
        .service(OrganizationService, organizationRoutes(deps))
        .service(MemberService, memberRoutes(deps))
        .service(SessionService, sessionRoutes(deps))
        .service(ApiKeyService, apiKeyRoutes(deps))
        .service(BootstrapTokenService, bootstrapTokenRoutes(deps))
        .service(DeviceCredentialService, deviceCredentialRoutes(deps))
        .service(ReadTokenService, readTokenRoutes(deps))
        .service(CredentialService, credentialRoutes(deps))
        .service(TenantService, tenantRoutes(deps))
        .service(EdgeCredentialService, edgeCredentialRoutes(deps))
        .service(AuditService, notImplemented(AuditService));
    },
    http: [],
    async start() {
      const { signal } = stopped;
      await deps.revocations.start();
      keyTimer = setInterval(() => {
        deps.keyRing.refresh().catch((error: unknown) => log.warn({ err: error }, "signing keys not refreshed"));
      }, keyRefreshMs);
      loops.push(
        holdLease(database, {
          name: "housekeeping",
          log,
          signal,
          async run(_lease, held) {
            await repeat(housekeepingMs, held, log, async () => {
              await keepHouse(deps);
              await trimIdempotency(database);
              await outbox.trim({ olderThanMs: 86_400_000 });
            });
          },
        }),
        holdLease(database, {
          name: "erasures",
          log,
          signal,
          run: (_lease, held) => repeat(resumeMs, held, log, () => resumeErasures(deps)),
        }),
        holdLease(database, {
          name: "embedded edge",
          log,
          signal,
          run: (lease, held) => keepEdgeProvisioned(deps, lease, held),
        }),
      );
    },
    async stop() {
      stopped.abort();
      clearInterval(keyTimer);
      await deps.revocations.stop();
      await Promise.all(loops);
      await outbox.close();
      await database.close();
    },
  };
};

/** Does work again and again until the signal aborts; a failure is logged and tried again at the next turn. */
async function repeat(
  everyMs: number,
  signal: AbortSignal,
  log: Dependencies["log"],
  work: () => Promise<void>,
): Promise<void> {
  while (!signal.aborted) {
    try {
      await work();
    } catch (error) {
      log.warn({ err: error }, "background work failed");
    }
    await new Promise<void>((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, everyMs);
      signal.addEventListener("abort", done);
      if (signal.aborted) done();
    });
  }
}

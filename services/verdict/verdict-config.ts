import {
  boolean,
  ConfigError,
  duration,
  type Environment,
  integer,
  list,
  readEnvironment,
} from "@octomesh/mesh/config";
import { isId } from "@octomesh/mesh/ids";

/** What the service reads from the environment. */
export interface VerdictConfig {
  /** How long a verdict is kept, milliseconds. */
  readonly ttlMs: number;
  readonly landmarkOrgs: readonly string[];
  readonly maxSessions: number;
  readonly maxSessionsOfOrganization: number;
  /** Whether the operator vouches that Redis writes nothing to disk. */
  readonly isRedisUnpersisted: boolean;
}

/** Reads the environment. Throws one ConfigError that lists every problem. */
export function readVerdictConfig(environment: Environment): VerdictConfig {
  const values = readEnvironment(environment, {
    OCTOMESH_VERDICT_TTL: duration(600_000, 30_000, 3_600_000),
    OCTOMESH_VERDICT_LANDMARK_ORGS: list(),
    OCTOMESH_VERDICT_MAX_SESSIONS: integer(1, 10_000_000, 150_000),
    OCTOMESH_VERDICT_MAX_SESSIONS_OF_ORG: integer(1, 10_000_000, 100_000),
    OCTOMESH_VERDICT_REDIS_UNPERSISTED: boolean(false),
  });
  const landmarkOrgs = values.OCTOMESH_VERDICT_LANDMARK_ORGS;
  if (!landmarkOrgs.every((each) => isId("org", each))) {
    throw new ConfigError([
      "OCTOMESH_VERDICT_LANDMARK_ORGS: ids of organisations (org_…) are expected, separated by commas",
    ]);
  }
  return {
    ttlMs: values.OCTOMESH_VERDICT_TTL,
    landmarkOrgs,
    maxSessions: values.OCTOMESH_VERDICT_MAX_SESSIONS,
    maxSessionsOfOrganization: values.OCTOMESH_VERDICT_MAX_SESSIONS_OF_ORG,
    isRedisUnpersisted: values.OCTOMESH_VERDICT_REDIS_UNPERSISTED,
  };
}

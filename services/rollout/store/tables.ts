import type { ColumnType, Generated, Transaction } from "kysely";
import type { RolloutState } from "../rollout.ts";

/** The tables of this service (migrations/001_init.sql). */
export interface Tables {
  models: {
    org_id: string;
    id: string;
    name: string;
    description: string;
    create_time: Date;
    update_time: Date;
    revision: Generated<bigint>;
  };
  artifacts: {
    org_id: string;
    id: string;
    sha256: Buffer;
    size_bytes: bigint;
    create_time: Date;
    touch_time: Date;
  };
  artifact_uploads: {
    org_id: string;
    id: string;
    sha256: Buffer;
    size_bytes: bigint;
    stored_bytes: Generated<bigint>;
    verified: Generated<boolean>;
    artifact_id: string | null;
    create_time: Date;
    expire_time: Date;
  };
  blob_garbage: {
    org_id: string;
    sha256: Buffer;
    create_time: Date;
  };
  manifest_keys: {
    org_id: string;
    id: string;
    public_key: Buffer;
    sealed_private_key: Buffer;
    create_time: Date;
    retire_time: Date | null;
  };
  model_versions: {
    org_id: string;
    id: string;
    sequence: Generated<bigint>;
    model_id: string;
    version: string;
    artifact_id: string;
    format: number;
    state: Generated<"published" | "deprecated">;
    manifest: Buffer;
    signature: Buffer;
    key_id: string;
    release_notes: string;
    create_time: Date;
    deprecate_time: Date | null;
  };
  rollout_revisions: {
    org_id: string;
    revision: bigint;
  };
  rollouts: {
    org_id: string;
    id: string;
    sequence: Generated<bigint>;
    model_id: string;
    version_id: string;
    group_ids: string[];
    target_key: string;
    plan: ColumnType<StoredPlan, string, string>;
    state: RolloutState;
    stage_index: Generated<number>;
    percentage_thousandths: Generated<number>;
    control_thousandths: number;
    salt: string;
    priority: number;
    prior_version_id: string | null;
    create_time: Date;
    update_time: Date;
    start_time: Date | null;
    stage_time: Date | null;
    end_time: Date | null;
    due_time: Date | null;
    revision: Generated<bigint>;
  };
  rollout_transitions: {
    org_id: string;
    id: string;
    sequence: Generated<bigint>;
    rollout_id: string;
    from_state: RolloutState | "";
    to_state: RolloutState;
    percentage_thousandths: number;
    actor_kind: string;
    actor_id: string;
    reason: string;
    create_time: Date;
  };
}

/** A plan as it is stored. */
export interface StoredPlan {
  stages: {
    percentage_thousandths: number;
    min_dwell_ms: number;
    min_sample: number;
    approval_required: boolean;
  }[];
  control_thousandths: number;
  schedule_time_ms?: number;
}

/** A transaction on these tables. */
export type Tx = Transaction<Tables>;

import { fail, Reason } from "@octomesh/mesh/errors";
import {
  type ReportTelemetryRequest,
  ReportTelemetryRequestSchema,
} from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import { contractMinor } from "./contract-minor.ts";
import { findUnknownFields, type UnknownField } from "./unknown-fields.ts";

const maxNamed = 16;

/**
 * Refuses a batch that holds what the contract does not know, or names what is another organisation's. Answers how many
 * unknown fields are to be left out, which is none unless the device announces a newer contract.
 *
 * Throws UNKNOWN_FIELD, naming field numbers and never values; VALIDATION_FAILED for a report without a kind;
 * RESOURCE_NOT_FOUND for the id of a model, version or rollout that `ownerOf` gives to another organisation. An id that
 * `ownerOf` does not know passes: it may be newer than what was heard, and counts in no cohort.
 */
export function checkBatch(
  request: ReportTelemetryRequest,
  orgId: string,
  ownerOf: (id: string) => string | undefined,
): number {
  const unknown = findUnknownFields(ReportTelemetryRequestSchema, request);
  const isNewer = request.contractMinor > contractMinor;
  if (unknown.length > 0 && !isNewer) throw unknownFields(unknown);
  for (const [index, { kind }] of request.reports.entries()) {
    if (kind.case === undefined) {
      // A kind of report that only the newer contract has: its field is among the unknown ones.
      if (isNewer && unknown.some(({ path }) => path === `reports[${index}]`)) continue;
      const field = `reports[${index}].kind`;
      throw fail(Reason.VALIDATION_FAILED, `${field} must be given`, { field });
    }
    const { modelId, versionId } = kind.value;
    const ids = {
      model_id: modelId,
      version_id: versionId,
      ...(kind.case === "rolloutProgress" && { rollout_id: kind.value.rolloutId }),
    };
    for (const [name, id] of Object.entries(ids)) {
      const owner = id === "" ? undefined : ownerOf(id);
      if (owner === undefined || owner === orgId) continue;
      const field = `reports[${index}].${name}`;
      throw fail(Reason.RESOURCE_NOT_FOUND, `${field} names nothing that the device's organisation has`, { field });
    }
  }
  return unknown.length;
}

function unknownFields(unknown: readonly UnknownField[]): Error {
  const names = unknown.slice(0, maxNamed).map(({ path, number }) => `${path === "" ? "" : `${path}.`}${number}`);
  const more = unknown.length > maxNamed ? `, and ${unknown.length - maxNamed} more` : "";
  return fail(
    Reason.UNKNOWN_FIELD,
    `the contract knows no field ${names.join(", ")}${more}: nothing of the batch was stored`,
    { fields: names.join(","), contract_minor: String(contractMinor) },
  );
}

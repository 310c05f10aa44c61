import { isReason } from "@octomesh/sdk";
import { HintedError } from "./hinted-error.ts";

/**
 * Gives refusals of what belongs to a licence a hint that fits: the licence may be the one that is not good any more,
 * and it has few certificates and keys at a time.
 *
 * @param group the word of the commands that list and revoke what was asked for: `edge-keys`
 */
export function explainLicenseRefusal(error: unknown, group: string): unknown {
  if (isReason(error, "QUOTA_EXCEEDED")) {
    return new HintedError(
      error,
      `Revoke one that is not in use: octomil ${group} revoke <id>. See octomil ${group} list.`,
    );
  }
  if (isReason(error, "RESOURCE_NOT_FOUND")) {
    return new HintedError(
      error,
      "See octomil licenses list, and check --profile: other organisations' are invisible.",
    );
  }
  if (isReason(error, "CREDENTIAL_REVOKED", "CREDENTIAL_EXPIRED")) {
    return new HintedError(
      error,
      "See octomil licenses list; octomil whoami says whether your own credential is good.",
    );
  }
  return error;
}

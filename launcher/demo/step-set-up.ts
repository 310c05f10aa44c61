import { apiKey, createClients } from "@octomesh/sdk";
import type { World } from "./world.ts";

const keyPattern = /\bedg_live_[0-9A-Za-z]{28}\b/;

/** Step 1: an organisation, its settings, a member, and the keys that its servers use. */
export async function setUp(world: World): Promise<void> {
  const { narrator } = world;
  narrator.say("The mesh printed a one-time code at its first start. Whoever has it sets up the organisation.");
  await world.octomil(["setup", "--code", world.setUpCode, "--org", "Acme Robotics", "--email", "ada@example.com"]);
  const caller = JSON.parse((await world.octomil(["whoami", "--json"], { quiet: true })).stdout) as Record<
    string,
    unknown
  >;
  world.check(caller.role === "ROLE_OWNER", "the owner is signed in; the session is kept with mode 0600");

  const again = await world.octomil(
    ["setup", "--code", world.setUpCode, "--org", "Other", "--email", "other@example.com", "--profile", "other"],
    { expect: "refused" },
  );
  world.check(/ALREADY_SET_UP|CREDENTIAL_/.test(again.stderr), "the code works once");

  await world.octomil(["org", "settings", "--device-token-expiry", "48h"]);
  await world.octomil(["org", "members", "add", "user@example.com", "--role", "admin"]);
  await world.octomil(["org", "members", "update", "user@example.com", "--role", "member"]);

  narrator.say("Two keys: one for the build server, one for the backend that looks after devices.");
  const scopes = "models:read,models:write,rollouts:write";
  world.ciKey = keyIn(
    (await world.octomil(["api-keys", "create", "--name", "ci-pipeline", "--scopes", scopes])).stdout,
  );
  world.fleetKey = keyIn(
    (
      await world.octomil([
        "api-keys",
        "create",
        "--name",
        "fleet-backend",
        "--scopes",
        "devices:read,devices:write,devices:enroll,rollouts:read,telemetry:read",
      ])
    ).stdout,
  );
  world.check(keyPattern.test(world.ciKey) && keyPattern.test(world.fleetKey), "both keys were shown, this once");
  world.backend = createClients({ baseUrl: world.url, credential: apiKey(world.fleetKey), timeoutMs: 90_000 });

  const refused = await world.octomil(["devices", "list"], { env: { OCTOMIL_API_KEY: world.ciKey }, expect: 1 });
  world.check(refused.stderr.includes("SCOPE_MISSING"), "the build server's key may not look at devices");
  const broken = `${world.ciKey.slice(0, -1)}${world.ciKey.endsWith("A") ? "B" : "A"}`;
  const malformed = await world.octomil(["models", "list"], { env: { OCTOMIL_API_KEY: broken }, expect: 3 });
  world.check(
    malformed.stderr.includes("CREDENTIAL_MALFORMED"),
    "a key with a typing error is told from an unknown one",
  );
}

function keyIn(text: string): string {
  return keyPattern.exec(text)?.[0] ?? "";
}

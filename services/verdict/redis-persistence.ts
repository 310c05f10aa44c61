/** What is asked of Redis; `CONFIG GET` of ioredis. */
export interface RedisConfig {
  config(command: "GET", parameter: string): Promise<unknown>;
}

/**
 * Makes sure that Redis writes nothing to disk (`save ""`, `appendonly no`): verdicts live for minutes, and are not to
 * outlive that in a file. Throws an error that says what to set where it does. Where Redis may not be asked, as with many
 * hosted ones, `vouched` stands for the answer, and without it the error says so.
 */
export async function demandNoPersistence(redis: RedisConfig, vouched: boolean): Promise<void> {
  let found: { save: string | undefined; appendonly: string | undefined };
  try {
    found = {
      save: settingOf(await redis.config("GET", "save"), "save"),
      appendonly: settingOf(await redis.config("GET", "appendonly"), "appendonly"),
    };
  } catch (error) {
    if (vouched) return;
    throw new Error(`REDIS_URL: redis does not say whether it writes to disk. ${advice}`, { cause: error });
  }
  if (found.save === undefined || found.appendonly === undefined) {
    if (vouched) return;
    throw new Error(`REDIS_URL: redis does not say whether it writes to disk. ${advice}`);
  }
  if (found.save !== "" || found.appendonly !== "no") {
    throw new Error(
      `REDIS_URL: redis writes to disk (save "${found.save}", appendonly ${found.appendonly}), and verdicts must not ` +
        'outlive their minutes: start it with --save "" --appendonly no',
    );
  }
}

const advice = "If you know that it does not, set OCTOMESH_VERDICT_REDIS_UNPERSISTED=true";

/** The answer is a list of names and values, or a map where the connection speaks RESP3. */
function settingOf(answer: unknown, name: string): string | undefined {
  if (Array.isArray(answer)) {
    const at = answer.indexOf(name);
    return at < 0 || typeof answer[at + 1] !== "string" ? undefined : answer[at + 1];
  }
  if (typeof answer !== "object" || answer === null) return undefined;
  const value = (answer as Record<string, unknown>)[name];
  return typeof value === "string" ? value : undefined;
}

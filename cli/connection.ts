import { apiKey, type Clients, type Credential, createClients, type SessionStore, session } from "@octomesh/sdk";
import { CommandError, usageError } from "./command-error.ts";
import { exitCode } from "./exit-code.ts";
import { checkProfileName, checkUrl, type Profile, type ProfileStore, profileOf } from "./profile-store.ts";

/** Where `octomil` looks for a mesh if it is told nothing. */
export const defaultUrl = "http://localhost:8080";

/** A mesh that a command talks to. */
export interface Connection {
  /** Typed clients of every service. */
  clients: Clients;
  /** The public origin. */
  url: string;
  /** Name of the profile; empty where none is involved. */
  profileName: string;
  /** What calls prove themselves with. */
  kind: "session" | "api_key" | "none";
  /** Whether the profile exists; a mesh may be named without one. */
  hasProfile: boolean;
}

/** What decides where a command goes, and as whom. */
export interface ConnectionOptions {
  env: Readonly<Record<string, string | undefined>>;
  store: ProfileStore;
  /** `--profile`. */
  profileName: string | undefined;
  /** `--url`. */
  url: string | undefined;
  /** Sends credentials over plain HTTP to other machines too. */
  allowPlaintext: boolean;
  /** Told of waits before a call is repeated. */
  onWait(message: string): void;
}

/**
 * Connects with the person's credential: `OCTOMIL_API_KEY` if it is set, else what the profile holds. A profile's
 * credential goes to the profile's own origin only, and none goes over plain HTTP to another machine.
 *
 * Throws a CommandError with exit code 3 where there is no credential.
 */
export async function connect(options: ConnectionOptions): Promise<Connection> {
  const { profileName, profile } = await chooseProfile(options);
  const url = chooseUrl(options, profile);
  const environmentKey = nonEmpty(options.env.OCTOMIL_API_KEY);
  const stored = profile?.session !== undefined || profile?.api_key !== undefined;
  if (environmentKey === undefined && !stored) {
    throw new CommandError(
      profile === undefined ? `there is no profile "${profileName}"` : `profile "${profileName}" is signed out`,
      {
        code: exitCode.unauthenticated,
        hint:
          profile === undefined
            ? "A new mesh: octomil setup --code … --org … --email …. An invitation: octomil login --code … --email …. Or set OCTOMIL_API_KEY."
            : "Sign in: octomil login --code … --email …, or set OCTOMIL_API_KEY.",
      },
    );
  }
  if (environmentKey === undefined && profile !== undefined && profile.url !== url) {
    throw usageError(
      `profile "${profileName}" belongs to ${profile.url}; its credential is not sent to ${url}`,
      "Name another profile with --profile, or set OCTOMIL_API_KEY.",
    );
  }
  refusePlaintext(url, options);
  const key = environmentKey ?? profile?.api_key;
  const hasProfile = profile !== undefined;
  if (key !== undefined) {
    return { ...open(url, options, keyCredential(key)), profileName, kind: "api_key", hasProfile };
  }
  return {
    ...open(url, options, session(sessionStore(options.store, profileName))),
    profileName,
    kind: "session",
    hasProfile,
  };
}

/** Connects without a credential: for set-up and for signing in. */
export async function connectPublic(options: ConnectionOptions): Promise<Connection> {
  const { profileName, profile } = await chooseProfile(options);
  const url = chooseUrl(options, profile);
  // A set-up or invitation code is worth as much as a credential.
  refusePlaintext(url, options);
  return { ...open(url, options, undefined), profileName, kind: "none", hasProfile: profile !== undefined };
}

/** The profile that a command works with: `--profile`, else `OCTOMIL_PROFILE`, else the current one. */
export async function chooseProfile(
  options: Pick<ConnectionOptions, "env" | "store" | "profileName">,
): Promise<{ profileName: string; profile: Profile | undefined }> {
  const configuration = await options.store.read();
  const named = nonEmpty(options.profileName) ?? nonEmpty(options.env.OCTOMIL_PROFILE);
  const profileName = named === undefined ? configuration.current : checkProfileName(named);
  return { profileName, profile: profileOf(configuration, profileName) };
}

function chooseUrl(options: ConnectionOptions, profile: Profile | undefined): string {
  return checkUrl(nonEmpty(options.url) ?? nonEmpty(options.env.OCTOMIL_URL) ?? profile?.url ?? defaultUrl);
}

function open(url: string, options: ConnectionOptions, credential: Credential | undefined) {
  const clients = createClients({
    baseUrl: url,
    credential,
    onRetry: ({ delayMs, error }) => {
      if (delayMs >= 1000) options.onWait(`${error.rawMessage}; trying again in ${Math.ceil(delayMs / 1000)} s`);
    },
  });
  return { clients, url };
}

function keyCredential(key: string): Credential {
  try {
    return apiKey(key.trim());
  } catch {
    throw new CommandError("the API key has not the form of one", {
      code: exitCode.unauthenticated,
      hint: "Keys begin with edg_live_ or edg_test_; copy it anew.",
    });
  }
}

/** Keeps a profile's session in the configuration file, shared with other commands that run at the same time. */
function sessionStore(store: ProfileStore, profileName: string): SessionStore {
  return {
    async load() {
      const stored = profileOf(await store.read(), profileName)?.session;
      if (stored === undefined) return undefined;
      return {
        accessToken: stored.access_token,
        refreshToken: stored.refresh_token,
        expireTimeMs: stored.expire_time_ms,
      };
    },
    async save(state) {
      await store.change((configuration) => {
        const profile = profileOf(configuration, profileName);
        if (profile?.session === undefined) return;
        profile.session = {
          id: profile.session.id,
          access_token: state.accessToken,
          refresh_token: state.refreshToken,
          expire_time_ms: state.expireTimeMs,
        };
      });
    },
    exclusively: (run) => store.exclusively(run),
  };
}

function refusePlaintext(url: string, options: ConnectionOptions): void {
  const { protocol, hostname } = new URL(url);
  const local = hostname === "localhost" || hostname === "[::1]" || /^127(\.\d{1,3}){3}$/.test(hostname);
  if (protocol === "https:" || local || options.allowPlaintext) return;
  throw usageError(
    `${url} is plain HTTP to another machine: anyone between could read the credential`,
    "Use https, or say --allow-plaintext if the way there is private.",
  );
}

function nonEmpty(text: string | undefined): string | undefined {
  return text === undefined || text === "" ? undefined : text;
}

/** What the browser says of itself without being asked for a permission. */
export interface Environment {
  /** Preferred languages, most preferred first; at most 10 of at most 35 characters. */
  readonly languages: readonly string[];
  /** IANA name of the time zone, at most 64 characters; empty where the browser tells none. */
  readonly tz: string;
  /** Minutes from local time to UTC, as `getTimezoneOffset` counts them: positive west of Greenwich. */
  readonly offset: number;
  /** Name of the platform, at most 64 characters. */
  readonly platform: string;
  /** Whether it is a mobile device; absent where the browser does not tell. */
  readonly mobile?: boolean;
}

/** The parts of `navigator` that are read. */
export interface NavigatorLike {
  readonly language?: string | undefined;
  readonly languages?: readonly string[] | undefined;
  readonly platform?: string | undefined;
  readonly userAgentData?: { readonly platform?: string; readonly mobile?: boolean } | undefined;
}

/** Reads the environment. Every part is cut to its bound, and what a browser lacks is left empty. */
export function readEnvironment(navigator: NavigatorLike, timeZone: string, offset: number): Environment {
  const { language, languages, userAgentData: hints } = navigator;
  const told = languages !== undefined && languages.length > 0 ? languages : [language];
  const mobile = hints?.mobile;
  return {
    languages: told
      .flatMap((each) => (typeof each === "string" && each !== "" ? [each.slice(0, 35)] : []))
      .slice(0, 10),
    tz: timeZone.slice(0, 64),
    offset,
    platform: String(hints?.platform || navigator.platform || "").slice(0, 64),
    ...(typeof mobile === "boolean" ? { mobile } : {}),
  };
}

import { existsSync } from "node:fs";
import { type Browser, chromium } from "playwright-core";

/** Where the demonstration looks for Chromium: `CHROMIUM`, else where Debian puts it. */
export const chromiumPath = process.env.CHROMIUM ?? "/usr/bin/chromium";

/** Flags for a browser that talks to nobody but the page's own servers. */
const quietFlags = [
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** Starts a real headless browser; undefined where none is installed. */
export async function startBrowser(): Promise<Browser | undefined> {
  if (!existsSync(chromiumPath)) return undefined;
  return await chromium.launch({ executablePath: chromiumPath, args: quietFlags });
}

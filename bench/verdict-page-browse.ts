import { chromium } from "playwright-core";

// A program for the browser's namespace: opens the page in Chromium, each time in a new browser, as often as asked in
// each mode, and prints {"ref","mode","beginMs"} for each: when its navigation began, ms since the Unix epoch.
const { url, sessions, executablePath } = JSON.parse(process.argv[2] ?? "{}") as {
  url: string;
  sessions: number;
  executablePath: string;
};
for (let session = 0; session < sessions; session += 1) {
  for (const mode of ["full", "lite", "passive"]) {
    const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-quic"] });
    try {
      const page = await browser.newPage({ ignoreHTTPSErrors: true });
      await page.goto(`${url}?mode=${mode}`, { timeout: 30_000 });
      await page.waitForFunction("!document.title.startsWith('waiting')", undefined, { timeout: 30_000 });
      const title = await page.title();
      if (!title.startsWith("done ")) throw new Error(`the collector ${title}`);
      const beginMs = await page.evaluate("performance.timeOrigin");
      process.stdout.write(`${JSON.stringify({ ref: title.slice("done ".length), mode, beginMs })}\n`);
    } finally {
      await browser.close();
    }
  }
}

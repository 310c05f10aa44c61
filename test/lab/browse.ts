import { connect } from "node:net";
import { chromium } from "playwright-core";

// A program for the browser's namespace: waits until the way to the edge is there, prints {"reached":true}, and opens
// the page in Chromium as often as asked, each time in a new browser, until the page says "done".
const { url, proxy, sessions, executablePath } = JSON.parse(process.argv[2] ?? "{}") as {
  url: string;
  proxy?: string;
  sessions: number;
  executablePath: string;
};
const reachMs = 30_000;
const sessionMs = 45_000;

/** Resolves when something answers there; tries for 30 s. */
async function reach({ hostname, port }: URL): Promise<void> {
  const end = Date.now() + reachMs;
  for (;;) {
    const reached = await new Promise<boolean>((resolve) => {
      const socket = connect({ host: hostname, port: Number(port) });
      const settle = (answer: boolean) => {
        socket.destroy();
        resolve(answer);
      };
      socket.setTimeout(1_000, () => settle(false));
      socket.once("connect", () => settle(true));
      socket.once("error", () => settle(false));
    });
    if (reached) return;
    if (Date.now() > end) throw new Error(`${hostname}:${port} is out of reach`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

await reach(new URL(proxy ?? url));
process.stdout.write(`${JSON.stringify({ reached: true })}\n`);
for (let session = 0; session < sessions; session += 1) {
  const browser = await chromium.launch({
    executablePath,
    args: ["--no-sandbox"],
    proxy: proxy === undefined ? undefined : { server: proxy },
    timeout: sessionMs,
  });
  try {
    const page = await browser.newPage({ ignoreHTTPSErrors: true });
    await page.goto(url, { timeout: sessionMs });
    await page.waitForFunction(() => /^(done|failed)/.test(document.title), undefined, { timeout: sessionMs });
    const title = await page.title();
    if (title !== "done") throw new Error(`the collector ${title}`);
  } finally {
    await browser.close();
  }
}

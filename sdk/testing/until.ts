/** Waits until a condition holds, looking every 5 ms. Throws after `timeoutMs` (default 10,000) with what was awaited. */
export async function until(condition: () => boolean, what = "a condition", timeoutMs = 10_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`${what} did not come about within ${timeoutMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

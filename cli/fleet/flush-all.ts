/**
 * Sends what waits at every device, `concurrency` at a time, for `timeoutMs` milliseconds at most over all. Answers when
 * all are done or the time is over; a device that fails keeps what it has. Never rejects.
 */
export async function flushAll(
  devices: readonly { flush(): Promise<void> }[],
  timeoutMs: number,
  concurrency = 64,
): Promise<void> {
  const queue = [...devices];
  let timer: ReturnType<typeof setTimeout> | undefined;
  const over = new Promise<void>((resolve) => {
    timer = setTimeout(() => {
      queue.length = 0;
      resolve();
    }, timeoutMs);
  });
  const work = async () => {
    for (let device = queue.shift(); device !== undefined; device = queue.shift()) {
      await device.flush().catch(() => {});
    }
  };
  const done = Promise.all(Array.from({ length: Math.min(concurrency, queue.length) }, work));
  try {
    await Promise.race([done, over]);
  } finally {
    clearTimeout(timer);
  }
}

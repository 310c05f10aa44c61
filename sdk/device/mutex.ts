/** Makes a function that runs what it is given one after another, in the order of the calls. */
export function createMutex(): <T>(run: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return <T>(run: () => Promise<T>) => {
    const result = last.then(run, run);
    last = result.catch(() => {});
    return result;
  };
}

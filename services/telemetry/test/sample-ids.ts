/** Well-formed ids for tests, each of the letters given: `sampleId("mdl", "a")` is `mdl_aaa…`. */
export function sampleId(prefix: string, letter: string): string {
  return `${prefix}_${letter.repeat(26)}`;
}

/** A device id that is different for each number, 0 to about a million. */
export function sampleDevice(number: number): string {
  const alphabet = "abcdefghijklmnopqrstuvwxyz234567";
  let text = "";
  for (let rest = number, place = 0; place < 4; place++, rest = Math.floor(rest / 32)) text += alphabet[rest % 32];
  return `dev_${text.padEnd(26, "a")}`;
}

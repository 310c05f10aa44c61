/**
 * Writes names one after the other as far as they fit into `width` characters, and then how many there are more:
 * `models:read models:write +9`. The first is always written.
 */
export function shortenList(names: readonly string[], width: number): string {
  const all = names.join(" ");
  if (all.length <= width) return all;
  let text = names[0] ?? "";
  let shown = 1;
  for (; shown < names.length; shown += 1) {
    const next = `${text} ${names[shown]}`;
    const left = names.length - shown - 1;
    if (`${next} +${left}`.length > width) break;
    text = next;
  }
  return shown < names.length ? `${text} +${names.length - shown}` : text;
}

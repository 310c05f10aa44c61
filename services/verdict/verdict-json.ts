import { Verdict_Alarm as Alarm, type Verdict } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";

/** A place in degrees, as JSON shows it. */
export interface PlaceJson {
  readonly lat: number;
  readonly lon: number;
}

/** A verdict as `GET /v1/verdict/{ref}` answers it. What is not known is absent. */
export interface VerdictJson {
  /** ISO 3166-1 alpha-2. */
  readonly country?: string;
  /** Probability that the country is right, 0 to 1. */
  readonly confidence: number;
  readonly alarm: "none" | "low" | "medium" | "high";
  readonly estimatedLocation?: PlaceJson;
  /** Kilometres. */
  readonly confidenceRadiusKm?: number;
  /** Vertices in their order, the first not repeated at the end. */
  readonly feasibleRegion?: readonly PlaceJson[];
  /** The verdict as a signed token. */
  readonly token?: string;
}

const alarms: ReadonlyMap<Alarm, VerdictJson["alarm"]> = new Map([
  [Alarm.NONE, "none"],
  [Alarm.LOW, "low"],
  [Alarm.MEDIUM, "medium"],
  [Alarm.HIGH, "high"],
]);

/** A verdict in the shape of Octet's REST interface. */
export function verdictJson(verdict: Verdict): VerdictJson {
  const { country, confidence, estimatedLocation, confidenceRadiusKm, feasibleRegion, token } = verdict;
  const alarm = alarms.get(verdict.alarm);
  if (alarm === undefined) throw new TypeError("a verdict has an alarm");
  return {
    ...(country === "" ? {} : { country }),
    confidence,
    alarm,
    ...(estimatedLocation === undefined ? {} : { estimatedLocation: placeJson(estimatedLocation) }),
    ...(confidenceRadiusKm === 0 ? {} : { confidenceRadiusKm }),
    ...(feasibleRegion.length === 0 ? {} : { feasibleRegion: feasibleRegion.map(placeJson) }),
    ...(token === "" ? {} : { token }),
  };
}

function placeJson({ latitude, longitude }: { latitude: number; longitude: number }): PlaceJson {
  return { lat: latitude, lon: longitude };
}

import { createLab } from "./lab.ts";

// A program that makes a laboratory, starts something in it, prints {"names"} of its namespaces, and waits for its end.
const namespaces = ["one", "two"];
const lab = await createLab({
  namespaces,
  links: [
    {
      ends: [
        { namespace: "one", address: "10.77.9.1" },
        { namespace: "two", address: "10.77.9.2" },
      ],
      rtt: 10,
    },
  ],
});
lab.run("one", "sleep", ["3600"]);
process.stdout.write(`${JSON.stringify({ names: namespaces.map((name) => lab.nameOf(name)) })}\n`);
setInterval(() => {}, 60_000);

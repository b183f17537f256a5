// How a client of tests/clients is driven: see serving.py.
import { createInterface } from "node:readline";

export const WEATHER = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};

export const getWeather = (city) => `sunny in ${city}`;

export const callTool = (name, given) =>
  ({ get_weather: getWeather })[name](JSON.parse(given).city);

const plain = (value) =>
  ["string", "number"].includes(typeof value) ? value : null;

export const describe = (error) => ({
  class: error.constructor.name,
  status: plain(error.status ?? error.statusCode),
  code: plain(error.code ?? error.data?.error?.code),
  param: plain(error.param ?? error.data?.error?.param),
  message: String(error),
});

export const prompts = (ask) =>
  Array.from({ length: 20 }, (_, number) => `${ask.prompt} number ${number}.`);

export async function serve(asks) {
  for await (const line of createInterface({ input: process.stdin })) {
    const ask = JSON.parse(line);
    let outcome;
    try {
      outcome = await asks[ask.api][ask.name](ask);
    } catch (error) {
      outcome = { error: describe(error) };
    }
    process.stdout.write(JSON.stringify(outcome) + "\n");
  }
}

// Vercel's AI SDK with its provider for OpenAI's API.
import { createOpenAI } from "@ai-sdk/openai";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { getWeather, prompts, serve } from "./serving.mjs";

const City = z.object({ city: z.string() });
const tools = {
  get_weather: tool({
    description: "The weather of a city.",
    inputSchema: City,
    execute: async ({ city }) => getWeather(city),
  }),
};

function options(ask) {
  const provider = createOpenAI({ baseURL: ask.base_url, apiKey: ask.key });
  return { model: provider[ask.api](ask.model), maxRetries: 0 };
}

const generate = (ask, more = { prompt: ask.prompt }) =>
  generateText({ ...options(ask), ...more });

const calls = (steps) =>
  steps
    .flatMap((step) => step.toolCalls)
    .map((call) => [call.toolName, call.input]);

// its errors come as parts of the stream
async function* parts(ask, more = {}) {
  const stream = streamText({
    ...options(ask),
    prompt: ask.prompt,
    onError: () => {},
    ...more,
  });
  for await (const part of stream.fullStream) {
    if (part.type === "error") throw part.error;
    yield part;
  }
}

const asks = {
  async plain(ask) {
    const answer = await generate(ask);
    return { text: answer.text, finish: answer.finishReason };
  },
  async streamed(ask) {
    const pieces = [];
    let finish = null;
    for await (const part of parts(ask)) {
      if (part.type === "text-delta") pieces.push(part.text);
      if (part.type === "finish") finish = part.finishReason;
    }
    return { text: pieces.join(""), pieces: pieces.length, finish };
  },
  async stopped(ask) {
    const stop = new AbortController();
    for await (const part of parts(ask, { abortSignal: stop.signal })) {
      if (part.type === "text-delta") {
        stop.abort();
        return { text: part.text };
      }
    }
  },
  // over responses, the answer goes back as a reference to its item
  async continued(ask) {
    const first = { role: "user", content: ask.prompt };
    const answer = await generate(ask, { messages: [first] });
    const again = { role: "user", content: `${ask.prompt} again` };
    const messages = [first, ...answer.response.messages, again];
    return { text: (await generate(ask, { messages })).text };
  },
  async tools(ask) {
    const more = { prompt: ask.prompt, tools, stopWhen: stepCountIs(3) };
    const answer = await generate(ask, more);
    return {
      text: answer.text,
      calls: calls(answer.steps),
      finish: answer.steps[0].finishReason,
    };
  },
  async "tools-streamed"(ask) {
    const steps = [];
    let text = "";
    const more = { tools, stopWhen: stepCountIs(3) };
    const onStepFinish = (step) => void steps.push(step);
    for await (const part of parts(ask, { ...more, onStepFinish }))
      if (part.type === "text-delta") text += part.text;
    return { text, calls: calls(steps), finish: steps[0].finishReason };
  },
  async image(ask) {
    const content = [
      { type: "text", text: ask.prompt },
      { type: "file", mediaType: "image/png", data: ask.image },
    ];
    return { text: (await generate(ask, { messages: [{ role: "user", content }] })).text };
  },
  async format(ask) {
    const output = Output.object({ schema: City });
    return { value: (await generate(ask, { prompt: ask.prompt, output })).output };
  },
  async twenty(ask) {
    const one = async (prompt) => (await generate(ask, { prompt })).text;
    return { texts: await Promise.all(prompts(ask).map(one)) };
  },
};

globalThis.AI_SDK_LOG_WARNINGS = false;
await serve({ chat: asks, responses: asks });

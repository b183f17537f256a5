// OpenAI's own client for Node.
import assert from "node:assert";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { WEATHER, callTool, prompts, serve } from "./serving.mjs";

const FUNCTION = { name: "get_weather", parameters: WEATHER, strict: true };
const CHAT_TOOLS = [{ type: "function", function: FUNCTION }];
const RESPONSES_TOOLS = [{ type: "function", ...FUNCTION }];
const City = z.object({ city: z.string() });

const client = (ask) =>
  new OpenAI({
    baseURL: ask.base_url,
    apiKey: ask.key,
    maxRetries: 0,
    timeout: 30000,
  });

const user = (content) => ({ role: "user", content });

const create = (ask, messages, more = {}) =>
  client(ask).chat.completions.create({ model: ask.model, messages, ...more });

async function chatResults(ask, choice) {
  const called = choice.message.tool_calls;
  const results = called.map((call) => ({
    role: "tool",
    tool_call_id: call.id,
    content: callTool(call.function.name, call.function.arguments),
  }));
  const messages = [user(ask.prompt), choice.message, ...results];
  const last = await create(ask, messages, { tools: CHAT_TOOLS });
  return {
    text: last.choices[0].message.content,
    calls: called.map((call) => [call.function.name, call.function.arguments]),
    finish: choice.finish_reason,
  };
}

const chat = {
  async plain(ask) {
    const [choice] = (await create(ask, [user(ask.prompt)])).choices;
    return { text: choice.message.content, finish: choice.finish_reason };
  },
  async streamed(ask) {
    const pieces = [];
    let finish = null;
    for await (const chunk of await create(ask, [user(ask.prompt)], { stream: true })) {
      if (chunk.choices[0]?.delta.content) pieces.push(chunk.choices[0].delta.content);
      finish = chunk.choices[0]?.finish_reason ?? finish;
    }
    return { text: pieces.join(""), pieces: pieces.length, finish };
  },
  async stopped(ask) {
    const stream = await create(ask, [user(ask.prompt)], { stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content) {
        stream.controller.abort();
        return { text: chunk.choices[0].delta.content };
      }
    }
  },
  async continued(ask) {
    const messages = [user(ask.prompt)];
    messages.push((await create(ask, messages)).choices[0].message);
    const last = await create(ask, [...messages, user(`${ask.prompt} again`)]);
    return { text: last.choices[0].message.content };
  },
  async tools(ask) {
    const answer = await create(ask, [user(ask.prompt)], { tools: CHAT_TOOLS });
    return chatResults(ask, answer.choices[0]);
  },
  async "tools-streamed"(ask) {
    const stream = client(ask).chat.completions.stream({
      model: ask.model,
      messages: [user(ask.prompt)],
      tools: CHAT_TOOLS,
    });
    return chatResults(ask, (await stream.finalChatCompletion()).choices[0]);
  },
  async image(ask) {
    const parts = [
      { type: "text", text: ask.prompt },
      { type: "image_url", image_url: { url: ask.image } },
    ];
    return { text: (await create(ask, [user(parts)])).choices[0].message.content };
  },
  async format(ask) {
    const answer = await client(ask).chat.completions.parse({
      model: ask.model,
      messages: [user(ask.prompt)],
      response_format: zodResponseFormat(City, "City"),
    });
    return { value: answer.choices[0].message.parsed };
  },
  async twenty(ask) {
    const one = async (prompt) =>
      (await create(ask, [user(prompt)])).choices[0].message.content;
    return { texts: await Promise.all(prompts(ask).map(one)) };
  },
};

const respond = (ask, input, more = {}) =>
  client(ask).responses.create({ model: ask.model, input, ...more });

const called = (answer) =>
  answer.output.filter((item) => item.type === "function_call");

const results = (answer) =>
  called(answer).map((item) => ({
    type: "function_call_output",
    call_id: item.call_id,
    output: callTool(item.name, item.arguments),
  }));

const described = (answer, last) => ({
  text: last.output_text,
  calls: called(answer).map((item) => [item.name, item.arguments]),
  finish: answer.status,
});

const responses = {
  async plain(ask) {
    const answer = await respond(ask, ask.prompt);
    return { text: answer.output_text, finish: answer.status };
  },
  async streamed(ask) {
    const events = [];
    for await (const event of await respond(ask, ask.prompt, { stream: true }))
      events.push(event);
    const numbers = events.map((event) => event.sequence_number);
    assert.deepEqual(numbers, [...new Set(numbers)].sort((a, b) => a - b));
    const pieces = events
      .filter((event) => event.type === "response.output_text.delta")
      .map((event) => event.delta);
    return {
      text: pieces.join(""),
      pieces: pieces.length,
      finish: events.at(-1).response.status,
    };
  },
  async stopped(ask) {
    const stream = await respond(ask, ask.prompt, { stream: true });
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") {
        stream.controller.abort();
        return { text: event.delta };
      }
    }
  },
  async continued(ask) {
    const first = await respond(ask, ask.prompt);
    const more = { previous_response_id: first.id };
    return { text: (await respond(ask, `${ask.prompt} again`, more)).output_text };
  },
  // the second request names the first response
  async tools(ask) {
    const answer = await respond(ask, ask.prompt, { tools: RESPONSES_TOOLS });
    const more = { tools: RESPONSES_TOOLS, previous_response_id: answer.id };
    return described(answer, await respond(ask, results(answer), more));
  },
  // the second request brings the whole conversation, and nothing is stored
  async "tools-streamed"(ask) {
    const more = { tools: RESPONSES_TOOLS, store: false };
    const stream = client(ask).responses.stream({
      model: ask.model,
      input: [user(ask.prompt)],
      ...more,
    });
    const answer = await stream.finalResponse();
    const items = [user(ask.prompt), ...answer.output, ...results(answer)];
    return described(answer, await respond(ask, items, more));
  },
  async image(ask) {
    const parts = [
      { type: "input_text", text: ask.prompt },
      { type: "input_image", image_url: ask.image, detail: "auto" },
    ];
    return { text: (await respond(ask, [user(parts)])).output_text };
  },
  async format(ask) {
    const answer = await client(ask).responses.parse({
      model: ask.model,
      input: ask.prompt,
      text: { format: zodTextFormat(City, "City") },
    });
    return { value: answer.output_parsed };
  },
  async twenty(ask) {
    const one = async (prompt) => (await respond(ask, prompt)).output_text;
    return { texts: await Promise.all(prompts(ask).map(one)) };
  },
};

await serve({ chat, responses });

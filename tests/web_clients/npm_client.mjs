// npm chatgpt's ChatGPTUnofficialProxyAPI, unmodified, before an address: `npm_client.mjs talk|read URL KEY [COUNT]`, results as JSON.
import { ChatGPTUnofficialProxyAPI } from "chatgpt";

const [task, url, key, count] = process.argv.slice(2);
const api = new ChatGPTUnofficialProxyAPI({ accessToken: key, apiReverseProxyUrl: url });

const after = (answer) => ({ conversationId: answer.conversationId, parentMessageId: answer.id });
const failure = (promise) => promise.then(() => 0, (error) => error.statusCode || error.name);

async function talk() {
  const pieces = [];
  const onProgress = (answer) => pieces.push(answer.text);
  const first = await api.sendMessage("Grüße \"you\" 你好 🙂", { onProgress });
  const second = await api.sendMessage("two", after(first));
  const branch = await api.sendMessage("other", after(first));
  const again = await api.sendMessage("two", { ...after(first), action: "variant" });
  const unknown = { conversationId: first.id, parentMessageId: first.id };
  return {
    pieces, first, second, branch, again,
    unknown: await failure(api.sendMessage("x", unknown)),
    cut: await failure(api.sendMessage("offline:cut now", { timeoutMs: 1000 })),
  };
}

async function read() {
  const texts = [];
  for (let number = 0; number < Number(count); number++) {
    texts.push((await api.sendMessage(String(number))).text);
  }
  return texts;
}

console.log(JSON.stringify(await (task === "talk" ? talk() : read())));

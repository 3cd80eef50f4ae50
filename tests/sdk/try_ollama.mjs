// Ollama's client for Node, on the listener of Ollama's API.
import {
  BEGINNING, FUNCTION, PARAMETERS, SCHEMA_QUESTION, TOOL_QUESTION, WORDS, load, messages, serve, vectors,
} from "./protocol.mjs";

const { Ollama } = load("ollama");

const client = (asked) => new Ollama({ host: asked.url, headers: { authorization: `Bearer ${asked.key}` } });
const options = (asked) => ({ num_predict: asked.max_tokens });

const chat = (asked, question, more = {}) =>
  client(asked).chat({ model: asked.model, messages: messages(question), options: options(asked), ...more });

async function* stream(asked) {
  const pieces = await chat(asked, undefined, { stream: true });
  try {
    for await (const piece of pieces) yield piece.message.content;
  } finally {
    pieces.abort();
  }
}

async function tools(asked) {
  const [call] = (await chat(asked, TOOL_QUESTION, { tools: [FUNCTION] })).message.tool_calls;
  return `${call.function.name} ${JSON.stringify(call.function.arguments)}`;
}

async function complete(asked) {
  const settings = { model: asked.model, prompt: BEGINNING, raw: true, options: options(asked) };
  return (await client(asked).generate(settings)).response;
}

await serve({
  plain: async (asked) => (await chat(asked)).message.content,
  stream,
  tools,
  schema: async (asked) => (await chat(asked, SCHEMA_QUESTION, { format: PARAMETERS })).message.content,
  complete,
  embed: async (asked) => vectors((await client(asked).embed({ model: asked.model, input: WORDS })).embeddings),
});

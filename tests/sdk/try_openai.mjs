// The OpenAI client for Node.
import { createReadStream } from "node:fs";

import {
  BEGINNING, FUNCTION, QUESTION, RESPONSE_FORMAT, SCHEMA_QUESTION, TOOL_QUESTION, WORDS,
  load, messages, serve, sound, vectors,
} from "./protocol.mjs";

const { default: OpenAI } = load("openai");

const client = (asked) => new OpenAI({ baseURL: `${asked.url}/v1`, apiKey: asked.key });

function create(asked, question, more = {}) {
  return client(asked).chat.completions.create({
    model: asked.model,
    messages: messages(question),
    max_tokens: asked.max_tokens,
    temperature: 0,
    ...more,
  });
}

async function* stream(asked) {
  for await (const chunk of await create(asked, undefined, { stream: true })) {
    for (const choice of chunk.choices) yield choice.delta.content;
  }
}

async function tools(asked) {
  const answer = await create(asked, TOOL_QUESTION, { tools: [FUNCTION], tool_choice: "required" });
  const call = answer.choices[0].message.tool_calls[0].function;
  return `${call.name} ${call.arguments}`;
}

async function complete(asked) {
  const settings = { model: asked.model, prompt: BEGINNING, max_tokens: asked.max_tokens, temperature: 0 };
  return (await client(asked).completions.create(settings)).choices[0].text;
}

async function respond(asked) {
  const settings = { model: asked.model, input: QUESTION, max_output_tokens: asked.max_tokens };
  return (await client(asked).responses.create(settings)).output_text;
}

async function embed(asked) {
  const answer = await client(asked).embeddings.create({ model: asked.model, input: WORDS });
  return vectors(answer.data.map((one) => one.embedding));
}

async function transcribe(asked) {
  const file = createReadStream(asked.sound);
  return (await client(asked).audio.transcriptions.create({ model: asked.model, file })).text;
}

async function speak(asked) {
  const settings = { model: asked.model, voice: "alloy", input: QUESTION, response_format: "wav" };
  return sound(await (await client(asked).audio.speech.create(settings)).arrayBuffer());
}

await serve({
  plain: async (asked) => (await create(asked)).choices[0].message.content,
  stream,
  tools,
  schema: async (asked) =>
    (await create(asked, SCHEMA_QUESTION, { response_format: RESPONSE_FORMAT })).choices[0].message.content,
  complete,
  respond,
  embed,
  transcribe,
  speak,
});

// The OpenAI client for Node.
import { FUNCTION, RESPONSE_FORMAT, SCHEMA_QUESTION, TOOL_QUESTION, load, messages, serve } from "./protocol.mjs";

const { default: OpenAI } = load("openai");

function create(asked, question, more = {}) {
  const client = new OpenAI({ baseURL: `${asked.url}/v1`, apiKey: asked.key });
  return client.chat.completions.create({
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

await serve({
  plain: async (asked) => (await create(asked)).choices[0].message.content,
  stream,
  tools,
  schema: async (asked) =>
    (await create(asked, SCHEMA_QUESTION, { response_format: RESPONSE_FORMAT })).choices[0].message.content,
});

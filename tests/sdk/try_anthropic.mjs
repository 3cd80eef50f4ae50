// Anthropic's client for Node, through `/v1/messages`.
import { PARAMETERS, TOOL, TOOL_QUESTION, load, messages, serve } from "./protocol.mjs";

const { default: Anthropic } = load("@anthropic-ai/sdk");

const client = (asked) => new Anthropic({ baseURL: asked.url, apiKey: asked.key });
const settings = (asked, question, more = {}) => ({
  model: asked.model,
  messages: messages(question),
  max_tokens: asked.max_tokens,
  ...more,
});

async function* stream(asked) {
  for await (const event of client(asked).messages.stream(settings(asked))) {
    if (event.type === "content_block_delta") yield event.delta.text;
  }
}

async function tools(asked) {
  const tool = { name: TOOL, description: "The weather of a city.", input_schema: PARAMETERS };
  const more = { tools: [tool], tool_choice: { type: "any" } };
  const answer = await client(asked).messages.create(settings(asked, TOOL_QUESTION, more));
  const call = answer.content.find((block) => block.type === "tool_use");
  return `${call.name} ${JSON.stringify(call.input)}`;
}

await serve({
  plain: async (asked) => (await client(asked).messages.create(settings(asked))).content[0].text,
  stream,
  tools,
});

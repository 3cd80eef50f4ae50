// LangChain's ChatOpenAI for Node.
import {
  FUNCTION, PARAMETERS, QUESTION, SCHEMA_QUESTION, TOOL_QUESTION, WORDS, load, serve, vectors,
} from "./protocol.mjs";

const { ChatOpenAI, OpenAIEmbeddings } = load("@langchain/openai");

const client = (asked) =>
  new ChatOpenAI({
    configuration: { baseURL: `${asked.url}/v1` },
    apiKey: asked.key,
    model: asked.model,
    maxTokens: asked.max_tokens,
  });

async function* stream(asked) {
  for await (const chunk of await client(asked).stream(QUESTION)) yield chunk.content;
}

async function tools(asked) {
  const answer = await client(asked).bindTools([FUNCTION], { tool_choice: "any" }).invoke(TOOL_QUESTION);
  const [call] = answer.tool_calls;
  return `${call.name} ${JSON.stringify(call.args)}`;
}

async function schema(asked) {
  const place = { title: "place", description: "A place.", ...PARAMETERS };
  const answer = await client(asked)
    .withStructuredOutput(place, { name: "place", method: "jsonSchema" })
    .invoke(SCHEMA_QUESTION);
  return JSON.stringify(answer);
}

async function embed(asked) {
  const configuration = { baseURL: `${asked.url}/v1` };
  const embeddings = new OpenAIEmbeddings({ configuration, apiKey: asked.key, model: asked.model });
  return vectors(await embeddings.embedDocuments(WORDS));
}

await serve({
  plain: async (asked) => (await client(asked).invoke(QUESTION)).content,
  stream,
  tools,
  schema,
  embed,
});

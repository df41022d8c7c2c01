// OpenAI's client for Node: chat, stream, tools, parsed JSON, responses, embeddings, errors. Throws at the first surprise.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.SUITE_URL, apiKey: process.env.SUITE_KEY, maxRetries: 0 });
const model = process.env.SUITE_MODEL;
const messages = [{ role: "user", content: "weather in eindhoven" }];
// The model's likeliest words, and one of these: the small model may babble in a free string until its budget ends.
const temperature = 0;
const place = { type: "string", enum: ["eindhoven", "delft"] };

const { data: whole, response } = await client.chat.completions.create({ model, messages, temperature }).withResponse();
assert.equal(typeof whole.choices[0].message.content, "string");
assert.equal(whole.model, model);
assert.match(response.headers.get("x-shiver-cost"), / SHIVER$/);

let text = "";
let last;
const stream = await client.chat.completions.create({
  model, messages, temperature, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  last = chunk;
}
assert.ok(text.length > 0);
assert.deepEqual(last.choices, []);
assert.ok(last.usage.total_tokens > 0);

const city = { type: "object", properties: { city: place }, required: ["city"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "get_weather", parameters: city } }];
const runner = client.chat.completions.stream({ model, messages, temperature, tools, tool_choice: "required" });
const message = await runner.finalMessage();
assert.equal(message.tool_calls[0].function.name, "get_weather");
JSON.parse(message.tool_calls[0].function.arguments);

const format = { type: "json_schema", json_schema: { name: "city", strict: true, schema: city } };
const answer = await client.chat.completions.parse({ model, messages, temperature, response_format: format });
assert.ok(place.enum.includes(answer.choices[0].message.parsed.city));

const said = await client.responses.create({ model, temperature, input: "hello shiver" });
assert.ok(said.output_text.length > 0);
const events = [];
for await (const event of await client.responses.create({ model, temperature, input: "hello shiver", stream: true })) {
  events.push(event.type);
}
assert.equal(events[0], "response.created");
assert.equal(events.at(-1), "response.completed");

const vectors = await client.embeddings.create({ model: process.env.SUITE_EMBED, input: ["text to embed", "another text"] });
assert.equal(vectors.data.length, 2);
assert.ok(vectors.data[0].embedding.every((number) => Number.isFinite(number)));

await assert.rejects(client.chat.completions.create({ model: "no-such", messages }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.code, "model_not_found");
  return true;
});
for await (const one of client.models.list()) assert.ok(one.created > 0 && one.owned_by);
console.log("ok");

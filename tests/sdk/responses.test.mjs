// The same server through the Node SDK. `test_node.py` runs this with the address in BASE_URL.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "none", maxRetries: 0 });
const question = { model: "starter", input: "Count from 1 to 10.", temperature: 0 };
const weather = {
  type: "function",
  name: "get_weather",
  description: "Get the weather of a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  strict: false,
};

test("a reply", async () => {
  const response = await client.responses.create(question);
  assert.equal(response.status, "completed");
  assert.ok(response.output_text.length > 0);
  assert.equal(response.usage.total_tokens, response.usage.input_tokens + response.usage.output_tokens);
});

test("a streamed reply says the same", async () => {
  let text = "";
  const numbers = [];
  for await (const event of await client.responses.create({ ...question, stream: true })) {
    numbers.push(event.sequence_number);
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.deepEqual(numbers, [...numbers.keys()]);
  assert.equal(text, (await client.responses.create(question)).output_text);
});

test("the stream helper follows the reply", async () => {
  const response = await client.responses.stream(question).finalResponse();
  assert.equal(response.status, "completed");
  assert.deepEqual(response.output.at(-1).content.map((part) => part.type), ["output_text"]);
});

test("an unknown model is not found", async () => {
  await assert.rejects(client.responses.create({ ...question, model: "missing" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    assert.equal(error.param, "model");
    return true;
  });
});

test("a tool is called and its result answered", async () => {
  const ask = { model: "starter", temperature: 0, reasoning: { effort: "none" }, tools: [weather] };
  const input = [{ role: "user", content: "What is the weather in Paris?" }];
  const asked = await client.responses.create({ ...ask, input });
  const call = asked.output.at(-1);
  assert.equal(call.type, "function_call");
  assert.deepEqual(JSON.parse(call.arguments), { city: "Paris" });

  input.push(...asked.output, { type: "function_call_output", call_id: call.call_id, output: '{"temperature": 21}' });
  const answered = await client.responses.create({ ...ask, input });
  assert.match(answered.output_text, /21/);
});

test("an answer is parsed by a schema of zod", async () => {
  const Answer = z.object({ sky: z.enum(["clear", "grey"]), degrees: z.number().int().min(0).max(40) });
  const response = await client.responses.parse({
    ...question,
    reasoning: { effort: "none" },
    text: { format: zodTextFormat(Answer, "answer") },
  });
  assert.ok(Answer.safeParse(response.output_parsed).success);
});

test("a required call has valid arguments", async () => {
  const ask = { model: "starter", temperature: 0, reasoning: { effort: "none" }, tools: [weather] };
  const stream = client.responses.stream({ ...ask, input: "Hello!", tool_choice: "required", parallel_tool_calls: false });
  const [call, ...others] = (await stream.finalResponse()).output;
  assert.equal(others.length, 0);
  assert.deepEqual(Object.keys(JSON.parse(call.arguments)), ["city"]);
});

test("a schema that cannot be followed is a bad request", async () => {
  const format = { type: "json_schema", name: "answer", schema: { type: "strnig" } };
  await assert.rejects(client.responses.create({ ...question, text: { format } }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.code, "invalid_json_schema");
    return true;
  });
});

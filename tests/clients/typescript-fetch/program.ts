import { EventSourceParserStream } from 'eventsource-parser/stream';
import { ChatApi, Configuration, ErrorResponseFromJSON, ResponseError, StreamChunkFromJSON } from './generated/index.js';
import type { ErrorResponse } from './generated/index.js';

const [baseUrl, message = ''] = process.argv.slice(2);
const stop = new AbortController();
process.once('SIGINT', () => stop.abort()); // closing the connection stops the model

function fail({ code, detail, correlationId }: ErrorResponse): never {
  console.error(`${code}: ${detail} [${correlationId}]`);
  process.exit(1);
}

try {
  const chat = new ChatApi(new Configuration({ basePath: baseUrl }));
  const { raw } = await chat.streamChatRaw({ chatRequest: { message } }, { signal: stop.signal });
  let reason = 'the connection broke off';
  for await (const event of raw.body!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream())) {
    const chunk = StreamChunkFromJSON(JSON.parse(event.data));
    switch (chunk.type) {
      case 'start': console.error(`[${chunk.model}, ${chunk.correlationId}]`); break;
      case 'reasoning': break; // comes only to requests with `include_reasoning`
      case 'text': process.stdout.write(chunk.text); break;
      case 'done': reason = chunk.finishReason; break;
      case 'error': fail(chunk.error);
      default: chunk satisfies never;
    }
  }
  if (reason !== 'stop') throw new Error(`The answer is incomplete: ${reason}.`);
} catch (error) {
  if (error instanceof ResponseError) fail(ErrorResponseFromJSON(await error.response.json()));
  if (!stop.signal.aborted) throw error;
  process.exitCode = 130;
}
